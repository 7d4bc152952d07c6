"""Applies a LoRA exactly: its dense change is added to the weights, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from .factors import PARTS, LoraWeights
from .formats import read_lora


def dense_deltas(weights: LoraWeights, parts: tuple[str, ...] = PARTS) -> dict[tuple[str, str], Tensor]:
    """The change of every weight by (part, module), float32 in the weight's shape."""
    return {key: factors.delta() for key, factors in weights.factors.items() if key[0] in parts}


@contextmanager
@torch.no_grad()
def merged(
    pipeline: StableDiffusionXLPipeline, path: Path, scale: float = 1.0, parts: tuple[str, ...] = PARTS
) -> Iterator[StableDiffusionXLPipeline]:
    """The pipeline with one of the family's LoRAs merged in; afterwards its weights are, bit by bit, what they were.

    Args:
        pipeline: float32, changed in place.
        path: the LoRA's file.
        scale: of the LoRA.
        parts: the networks that it may change; the others' share is left out.
    """
    deltas = dense_deltas(read_lora(path, pipeline), parts)
    weights = {key: getattr(pipeline, key[0]).get_submodule(key[1]).weight for key in deltas}
    pristine = {key: weight.clone() for key, weight in weights.items()}
    for key, weight in weights.items():
        if weight.shape != deltas[key].shape:
            raise ValueError(f"{'.'.join(key)} is {list(weight.shape)}, the LoRA's change {list(deltas[key].shape)}")
        weight += scale * deltas[key]
    try:
        yield pipeline
    finally:
        for key, weight in weights.items():
            weight.copy_(pristine[key])
