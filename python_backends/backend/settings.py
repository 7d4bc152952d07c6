"""A model's settings and texts: what a backend needs of Triton before it computes anything. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ..common.errors import InvalidRequestError
from ..common.filesystem import as_path, write_utf8

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Parameters(dict[str, str]):
    """A configuration's `parameters`; one that is not there is told in a sentence."""

    def __missing__(self, name: str) -> str:
        """Raises ValueError: models and their configurations are of one release."""
        raise ValueError(f"its configuration lacks the parameter {name}; wanted: a repository exported by this release")


def instance_of(args: Mapping[str, str]) -> str:
    """Tells a model's instance from its others, by the arguments of `initialize`: those of a group have one name."""
    return f"{args['model_instance_name']}-{args['model_instance_device_id']}"


@dataclass(frozen=True)
class ModelSettings:
    """One model instance as its config.pbtxt describes it.

    Attributes:
        name: The model's name.
        instance: Tells it from others of the model: Triton's name of it, which those of a group share, and its GPU.
        repository: The directory that holds the model's directory.
        parameters: The config's `parameters`.
        config: The whole config as Triton completed it.
        gpu: Index of the instance's GPU; None on the CPU.
    """

    name: str
    instance: str
    repository: Path
    parameters: Mapping[str, str]
    config: Mapping[str, Any]
    gpu: int | None

    @classmethod
    def from_triton(cls, args: Mapping[str, str]) -> ModelSettings:
        """Reads the arguments of `TritonPythonModel.initialize`; the process's log is UTF-8 from then on."""
        write_utf8()
        config = json.loads(args["model_config"])
        return cls(
            name=args["model_name"],
            instance=instance_of(args),
            repository=as_path(args["model_repository"]).parent,
            parameters=Parameters({key: value["string_value"] for key, value in config.get("parameters", {}).items()}),
            config=config,
            gpu=int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None,
        )

    def path(self, parameter: str) -> Path | None:
        """A parameter that is a path, relative to the repository's or absolute; None where it is absent or empty."""
        return self.resolved(self.parameters.get(parameter))

    def resolved(self, text: str | None) -> Path | None:
        """A path as a repository refers to it; None where there is none."""
        return (self.repository / as_path(text).expanduser()).resolve() if text else None

    def required_path(self, parameter: str) -> Path:
        """A path without which there is no such model.

        Raises:
            ValueError: If the parameter is absent.
        """
        return (self.repository / as_path(self.parameters[parameter]).expanduser()).resolve()


def input_arrays(request: Any, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of the named inputs that are present, as numpy: views of Triton's memory, valid during `execute`."""
    tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in names}
    return {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}


def parameter_names(request: Any) -> list[str]:
    """Names of a request's parameters.

    Raises:
        InvalidRequestError: If one of them, or its value, is no text.
    """
    try:
        return list(json.loads(request.parameters()))
    except UnicodeDecodeError:
        raise InvalidRequestError("the request has parameters that are not UTF-8; allowed: UTF-8") from None


def input_text(request: Any, name: str) -> str:
    """The first element of a required BYTES input."""
    return input_texts(request, name)[0]


def input_bytes(request: Any, name: str) -> bytes:
    """The first element of a required BYTES input, as it came."""
    return bytes(pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)[0])


def input_texts(request: Any, name: str) -> list[str]:
    """The elements of a required BYTES input."""
    return _texts(pb_utils.get_input_tensor_by_name(request, name))


def response_texts(response: Any, name: str) -> list[str]:
    """The elements of a BYTES output of a response."""
    return _texts(pb_utils.get_output_tensor_by_name(response, name))


def _texts(tensor: Any) -> list[str]:
    return [text.decode("utf-8") for text in tensor.as_numpy().reshape(-1)]


def bytes_tensor(name: str, content: bytes) -> Any:
    """A BYTES tensor of shape [1, 1]."""
    return pb_utils.Tensor(name, np.array([[content]], dtype=object))


def text_tensor(name: str, *texts: str) -> Any:
    """A BYTES tensor of shape [texts, 1]."""
    return pb_utils.Tensor(name, np.array([[text.encode("utf-8")] for text in texts], dtype=object))
