"""The files of a diffusers-format checkpoint: its index, and of each part class, configuration and weight files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from .weight_files import WeightFileError, weight_files

_TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
CLASSES = {
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL", "AutoencoderTiny")),
    "text_encoder": ("transformers", _TEXT_ENCODERS),
    "text_encoder_2": ("transformers", _TEXT_ENCODERS),
}
"""Network of a checkpoint → library and its classes that are served."""


class CheckpointError(ValueError):
    """The directory is not a checkpoint that can be served; the message says why."""


@dataclass(frozen=True)
class CheckpointFiles:
    """A directory that `DiffusionPipeline.from_pretrained` loads.

    Attributes:
        path: The directory that holds `model_index.json`.
    """

    path: Path

    @cached_property
    def index(self) -> dict[str, Any]:
        """`model_index.json`."""
        return self.read("model_index.json")

    def class_name(self, part: str) -> tuple[str | None, str | None]:
        """Library and class of a part by the index; None where it has none."""
        entry = self.index.get(part)
        library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        return library, name

    def network_class(self, part: str) -> Any:
        """The class of a network by the index.

        Raises:
            CheckpointError: If it is none that is served.
        """
        library, served = CLASSES[part]
        name = self.class_name(part)[1]
        if name not in served:
            raise CheckpointError(f"{self.path}: its {part} is of class {name}; served are {', '.join(served)}")
        return getattr(import_module(library), name)

    def weight_files(self, part: str) -> list[Path]:
        """The safetensors files of a part such as `unet`, as diffusers chooses among them.

        Raises:
            CheckpointError: If there are none, or a shard is missing.
        """
        try:
            return weight_files(self.path / part)
        except WeightFileError as error:
            raise CheckpointError(str(error)) from None

    def read(self, name: str) -> dict[str, Any]:
        """A JSON object of the checkpoint.

        Raises:
            CheckpointError: If it is not there, or is none.
        """
        file = self.path / name
        try:
            content = json.loads(file.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(f"{self.path} is not a diffusers checkpoint: it has no {name}") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{file} is not a JSON object")
        return content
