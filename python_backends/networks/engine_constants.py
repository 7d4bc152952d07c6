"""Which of the weights that LoRAs adapt engines hold as they were, by the engines' descriptions. Needs no TensorRT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lora.files.modules import TEXT_ENCODER, TEXT_ENCODER_2, UNET
from ..tensorrt.metadata import EngineMetadata
from ..tensorrt.tensor_names import DECODER, ENCODER, WEIGHT

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ENGINES = {UNET: (ENCODER, DECODER), TEXT_ENCODER: (TEXT_ENCODER,), TEXT_ENCODER_2: (TEXT_ENCODER_2,)}
"""Component → its engines."""


def engine_constants(engines: Path, components: Iterable[str]) -> dict[str, frozenset[str]]:
    """Component → modules whose weights are constant in its engines, beside its norms and biases, which always are.

    Args:
        engines: Their directory.
        components: Those that engines evaluate.

    Raises:
        EngineMismatchError: If a description is missing or cannot be read.
    """
    return {
        component: frozenset(
            weight.removesuffix(WEIGHT)
            for name in ENGINES[component]
            for weight in EngineMetadata.read(engines, name).constants
        )
        for component in components
    }
