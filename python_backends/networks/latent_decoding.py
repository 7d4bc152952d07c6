"""Latents → pixels, as the last lines of diffusers' pipelines do it."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import AutoencoderKL


def decode_latents(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """The pictures of a batch of latents, decoded one by one.

    So a picture is the same in any company, and takes the memory of one: of SDXL's, 3.2 GB in float32 at 1024 x 1024.

    Args:
        vae: On its device, of `Checkpoint.vae_dtype`.
        latents: [B, C, h, w], float32.

    Returns:
        [B, H, W, 3] uint8 on the CPU.
    """
    weight = next(vae.parameters())  # diffusers' `device` and `dtype` walk over all modules
    return pictures(partial(_whole, vae), latents.to(weight.device, weight.dtype))


def pictures(decoded: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor) -> torch.Tensor:
    """The pictures of a batch of latents, one by one: [B, H, W, 3] uint8 on the CPU.

    Args:
        decoded: What is made of one, as of `decode`; its next call may overwrite it.
        latents: [B, C, h, w], as `decoded` takes them.
    """
    return torch.cat([_pixels(decoded(row)) for row in latents.split(1)]).cpu()


def _whole(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """As `decode`; what overflows in float16 is decoded again in float32, where diffusers' picture is black."""
    image = decode(vae, latents)
    if latents.dtype == torch.float16 and not image.isfinite().all():
        return decode(deepcopy(vae).float(), latents.float())
    return image


def _pixels(image: torch.Tensor) -> torch.Tensor:
    """[B, H, W, 3] uint8 of [B, 3, H, W] as `decode` gives it, where it lies."""
    pixels = (image * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()


def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """What the autoencoder makes of a batch of latents: [B, 3, H, W] float32, about -1 to 1.

    Args:
        vae: On its device.
        latents: [B, C, h, w] as a sampler leaves them, of the autoencoder's type and device.
    """
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        scaled = latents * latents.new_tensor(std).view(1, -1, 1, 1) / vae.config.scaling_factor
        latents = scaled + latents.new_tensor(mean).view(1, -1, 1, 1)
    else:
        latents = latents / vae.config.scaling_factor
    return vae.decode(latents, return_dict=False)[0].float()
