"""What a ControlNet trains on: drawings in varied layouts, encoded once, their captions and their controls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from ..drawing import draw
from ..latents import Batch
from ..lora.data import encode_captions, encode_drawings, sample_captions, sampled_scene
from .controls import PALETTES, Kind, control_map, sample_control_layout


@dataclass(frozen=True)
class ControlledBatch(Batch):
    """One training batch with its controls.

    Attributes:
        control: float32 [batch, 3, 128, 128], 0..1.
    """

    control: Tensor


def to_control_tensor(images: np.ndarray) -> Tensor:
    """uint8 [batch, height, width, 3] to what ControlNets take, float32 [batch, 3, height, width] in 0..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


class ControlledPictures:
    """The training set of one ControlNet; held-out arrangements are left out.

    Args:
        pipeline: encodes.
        kind: of control.
        pictures: how many.
        seed: of scenes, layouts and captions.
    """

    def __init__(self, pipeline: StableDiffusionXLPipeline, kind: Kind, pictures: int, seed: int) -> None:
        self.kind = kind
        self.pictures = pictures
        scenes = [sampled_scene(seed, index) for index in range(pictures)]
        layouts = [
            sample_control_layout(scenes[index], np.random.default_rng([seed, 9, index])) for index in range(pictures)
        ]
        self.maps = np.stack([control_map(kind, *drawn) for drawn in zip(scenes, layouts, strict=True)])
        self.latents = encode_drawings(pipeline, lambda index: draw(scenes[index], layouts[index]), pictures)
        self.captions = encode_captions(pipeline, [*sample_captions(pictures, seed), ""])

    def batch(self, rng: np.random.Generator, size: int, unconditional_share: float) -> ControlledBatch:
        """Draws a random batch.

        Args:
            rng: chooses pictures.
            size: of the batch.
            unconditional_share: how often the caption is the empty one; the control stays, as in sampling.
        """
        rows = rng.integers(self.pictures, size=size)
        captions = np.where(rng.random(size) < unconditional_share, self.pictures, rows)
        return ControlledBatch(
            self.latents[rows],
            self.captions.embeddings[captions].float(),
            self.captions.pooled[captions].float(),
            to_control_tensor(PALETTES[self.kind][self.maps[rows]]),
        )
