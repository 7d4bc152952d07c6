"""Engines that are called as the networks of PyTorch are: a UNet's two halves, a ControlNet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .engine import Engine
from .tensor_names import CONTROL_EMBEDDING, CONTROLNET_INPUTS, DECODER, ENCODER, ENCODER_INPUTS, halfway_among

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class EngineHalves:
    """Both halves on one GPU.

    Attributes:
        encoder: Its engine.
        decoder: Its engine.
    """

    def __init__(self, directory: Path, device: torch.device) -> None:
        """Loads both.

        Args:
            directory: Of `build-engines`.
            device: A GPU.

        Raises:
            EngineMismatchError: If they are not for this machine.
            TensorRTUnavailableError: Without TensorRT or a GPU.
        """
        self.encoder = Engine.load(directory, ENCODER, device)
        self.decoder = Engine.load(directory, DECODER, device)
        self._halfway = halfway_among(self.encoder.outputs)

    def encode(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What `decode` needs; the next call with inputs of these shapes overwrites it.

        Args:
            *arguments: Those of ENCODER_INPUTS, in that order; absent ones are empty.

        Raises:
            EngineShapeError: If the engine was not built for these shapes.
        """
        given = dict(zip(ENCODER_INPUTS, arguments, strict=True))
        found = self.encoder.run({name: given[name] for name in self.encoder.inputs})
        return tuple(found[name] for name in self._halfway)

    def decode(self, encoder_hidden_states: torch.Tensor, *halfway: torch.Tensor) -> torch.Tensor:
        """The noise prediction [B, C, h, w]; the next call with inputs of these shapes overwrites it.

        Args:
            encoder_hidden_states: [B, tokens, width].
            *halfway: What `encode` gave, with residuals added or without.

        Raises:
            EngineShapeError: If the engine was not built for these shapes.
        """
        given = dict(zip(self._halfway, halfway, strict=True)) | {"encoder_hidden_states": encoder_hidden_states}
        return self.decoder.run({name: given[name] for name in self.decoder.inputs})["noise_prediction"]


class EngineControlNet:
    """A ControlNet on one GPU, called as `controlnet_modules.PositionalControlNet` is. A union has no engine."""

    def __init__(self, directory: Path, name: str, device: torch.device) -> None:
        """Loads it.

        Args:
            directory: Of `build-engines`.
            name: Of the engine: `controlnet_NAME`.
            device: A GPU.

        Raises:
            EngineMismatchError: If it is not for this machine.
            TensorRTUnavailableError: Without TensorRT or a GPU.
        """
        self._engine = Engine.load(directory, name, device)
        self._outputs = sorted(self._engine.outputs, key=_residual_order)

    def __call__(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Residuals of the skips and then of the mid block; the next call with inputs of these shapes overwrites them.

        Args:
            *arguments: Those of CONTROLNET_INPUTS, and the embedded picture; absent ones are empty.

        Raises:
            EngineShapeError: If the engine was not built for these shapes.
        """
        given = dict(zip((*CONTROLNET_INPUTS, CONTROL_EMBEDDING), arguments, strict=True))
        found = self._engine.run({name: given[name] for name in self._engine.inputs})
        return tuple(found[name] for name in self._outputs)


def _residual_order(name: str) -> float:
    number = name.removeprefix("residual_")
    return float(number) if number.isdigit() else float("inf")
