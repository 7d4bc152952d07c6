"""What mask-aware editing is measured against that the server does not do by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLInpaintPipeline
from kv_stacks import KvStacks
from PIL import Image

from swiftdiffusion.clients import Client, GenerationRequest
from swiftdiffusion.python_backends.networks.token_masks import token_mask

CELL, MULTIPLE, LEAST = 8, 32, 64
"""Pixels of the demo family: a latent cell's side; sides that all of its UNet's levels halve evenly are a multiple of
the second; and the shortest that is cut out."""


class KvPipeline:
    """diffusers' inpainting pipeline of the demo family, float32 on the CPU, with Euler; and with `KvStacks`."""

    def __init__(self, checkpoint: Path) -> None:
        """Loads it."""
        self._pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(checkpoint, dtype=torch.float32)
        self._pipeline.scheduler = EulerDiscreteScheduler.from_config(self._pipeline.scheduler.config)
        self._pipeline.set_progress_bar_config(disable=True)
        self._stacks = KvStacks(self._pipeline.unet)

    def draw(self, request: GenerationRequest) -> np.ndarray:
        """The exact picture, uint8 [H, W, 3]."""
        picture = np.asarray(request.init_image)
        made = self._pipeline(
            request.prompt,
            image=Image.fromarray(picture),
            mask_image=Image.fromarray(np.asarray(request.mask_image)),
            height=picture.shape[0],
            width=picture.shape[1],
            strength=request.strength,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator().manual_seed(request.seed),
        )
        return np.asarray(made.images[0])

    def draw_masked(self, request: GenerationRequest, template: GenerationRequest) -> np.ndarray:
        """The picture of which masked tokens alone are computed, uint8 [H, W, 3].

        Args:
            request: What is wanted.
            template: Computed beforehand, exactly: its keys and values are kept.
        """
        with self._stacks.recorded() as kept:
            self.draw(template)
        cells = torch.from_numpy(np.asarray(request.mask_image)[::CELL, ::CELL])
        with self._stacks.masked(token_mask(cells, len(self._pipeline.unet.config.block_out_channels)), kept):
            return self.draw(request)


def draw_cut_out(client: Client, request: GenerationRequest) -> np.ndarray:
    """The picture with the part around the mask edited as one of its own, uint8 [H, W, 3]."""
    whole, mask = np.array(request.init_image), np.asarray(request.mask_image)
    box = _span(mask.any(1)), _span(mask.any(0))
    whole[box] = client.generate(replace(request, init_image=whole[box], mask_image=mask[box])).pixels
    return whole


def _span(masked: np.ndarray) -> slice:
    """Where to cut a side [pixels] of which some are masked: these in its middle, as far as there is room."""
    first, *_, last = masked.nonzero()[0] // CELL * CELL
    length = max(LEAST, -(-(last + CELL - first) // MULTIPLE) * MULTIPLE)
    start = (first + last + CELL - length) // 2 // CELL * CELL
    start = min(max(0, start), len(masked) - length)
    return slice(start, start + length)
