"""Engines that are called as the networks of PyTorch are: a UNet's two halves, a ControlNet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .engine import Engine, parameters
from .tensor_names import CONTROL_EMBEDDING, CONTROLNET_INPUTS, DECODER, ENCODER, ENCODER_INPUTS, halfway_among

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from .flavours import Flavour

IDS = "input_ids"
"""What text encoders take."""


class EngineHalves:
    """Both halves on one GPU.

    Attributes:
        encoder: Its engine.
        decoder: Its engine.
    """

    def __init__(
        self, directory: Path, device: torch.device, flavour: Flavour, unet: torch.nn.Module, digest: str
    ) -> None:
        """Loads both; arguments and errors as of `Engine.load`."""
        weights = parameters(unet)
        self.encoder = Engine.load(directory, ENCODER, device, flavour, weights, digest)
        self.decoder = Engine.load(directory, DECODER, device, flavour, weights, digest)
        self._halfway = halfway_among(self.encoder.outputs)

    @property
    def constants(self) -> frozenset[str]:
        """As of `Engine`, of both."""
        return self.encoder.constants | self.decoder.constants

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
        taken = {name: given[name] for name in self.decoder.inputs}
        return self.decoder.run(taken, adopted=self._halfway)["noise_prediction"]


class EngineControlNet:
    """A ControlNet on one GPU, called as `controlnet_modules.PositionalControlNet` is. A union has no engine."""

    def __init__(self, directory: Path, name: str, device: torch.device, flavour: Flavour, digest: str) -> None:
        """Loads `controlnet_NAME`; arguments and errors as of `Engine.load`."""
        self._engine = Engine.load(directory, name, device, flavour, digest=digest)
        self._outputs = sorted(self._engine.outputs, key=lambda name: (name == "residual_mid", len(name), name))

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


class EngineTextEncoder:
    """What diffusers' `encode_prompt` takes of a text encoder, for words that it knew when its engine was built."""

    def __init__(self, engine: Engine, vocabulary: int) -> None:
        """Takes the engine.

        Args:
            engine: Of the text encoder.
            vocabulary: How many tokens it knows; those of textual inversions come after.
        """
        self._engine, self._vocabulary = engine, vocabulary

    def __call__(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Hidden states [B, tokens, width] and what is pooled [B, pooled width]; the next call overwrites them.

        Args:
            ids: [B, tokens].

        Returns:
            None, where the engine cannot say.
        """
        if not self._engine.takes({IDS: tuple(ids.shape)}) or int(ids.max()) >= self._vocabulary:
            return None
        found = self._engine.run({IDS: ids})
        return found["hidden_states"], found.get("pooled")
