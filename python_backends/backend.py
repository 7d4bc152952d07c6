"""What every backend class needs of Triton: its settings, its device, text tensors, errors.

The only modules that import `triton_python_backend_utils` are this one and those that hold a `TritonPythonModel`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class ModelSettings:
    """One model instance as its config.pbtxt describes it.

    Attributes:
        name: The model's name.
        repository: The directory that holds the model's directory.
        parameters: The config's `parameters`.
        config: The whole config as Triton completed it.
        device: Where this instance computes: its `instance_group`'s GPU, else the CPU.
        dtype: Floating-point type of weights and activations.
    """

    name: str
    repository: Path
    parameters: Mapping[str, str]
    config: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def from_triton(cls, args: Mapping[str, str]) -> ModelSettings:
        """Reads the arguments of `TritonPythonModel.initialize` and applies the process-wide ones (threads, logging)."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        on_gpu = args["model_instance_kind"] == "GPU"
        device = torch.device(f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        if on_gpu:
            torch.cuda.set_device(device)
        torch.set_num_threads(int(parameters.get("threads", "1")))
        torch.set_grad_enabled(False)
        _quieten_libraries()
        return cls(
            name=args["model_name"],
            repository=Path(args["model_repository"]).parent,
            parameters=parameters,
            config=config,
            device=device,
            dtype=getattr(torch, parameters.get("dtype", "float32")),
        )

    @property
    def checkpoint(self) -> Checkpoint:
        """The served checkpoint; a relative path counts from the repository's directory."""
        return Checkpoint((self.repository / self.parameters["checkpoint"]).resolve())


def input_array(request: Any, name: str) -> np.ndarray | None:
    """An input tensor on the CPU as numpy (a view of Triton's memory, valid during `execute`), or None if absent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def input_tensor(request: Any, name: str) -> torch.Tensor | None:
    """An input tensor where it lies, without a copy, valid during `execute`; None if absent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else torch.from_dlpack(tensor.to_dlpack())


def input_text(request: Any, name: str) -> str:
    """The one element of a required BYTES input."""
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)[0].decode("utf-8")


def text_tensor(name: str, text: str) -> Any:
    """A BYTES tensor of shape [1, 1]."""
    return pb_utils.Tensor(name, np.array([[text.encode("utf-8")]], dtype=object))


def output_tensor(name: str, tensor: torch.Tensor) -> Any:
    """A Triton tensor over the same memory."""
    return pb_utils.Tensor.from_dlpack(name, tensor.contiguous())


def error_response(message: str, code: int | None = None) -> Any:
    """A response that carries only an error; INTERNAL unless a code of `pb_utils.TritonError` is given."""
    error = pb_utils.TritonError(message) if code is None else pb_utils.TritonError(message, code)
    return pb_utils.InferenceResponse(output_tensors=[], error=error)


def _quieten_libraries() -> None:
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
