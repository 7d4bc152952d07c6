"""Pixels → what latents are drawn from, as the first lines of diffusers' img2img and inpainting pipelines do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AutoencoderKL, AutoencoderTiny


class VaeEncoder(torch.nn.Module):
    """The half of an autoencoder that encodes: `AutoencoderKL._encode`, or what `AutoencoderTiny.encode` calls."""

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny) -> None:
        """Shares its modules."""
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, getattr(vae, "quant_conv", None)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Moments [B, 2·C, h, w] of pixels [B, 3, H, W], -1 to 1; of an `AutoencoderTiny` the latents [B, C, h, w]."""
        encoded = self.encoder(pixels)
        return encoded if self.quant_conv is None else self.quant_conv(encoded)


def encode_picture(encoder: VaeEncoder, picture: np.ndarray, mask: np.ndarray | None = None) -> torch.Tensor:
    """What latents of a picture are drawn from.

    Args:
        encoder: Where it computes.
        picture: [H, W, 3] uint8.
        mask: [H, W]: where it is 1, the picture is left out, as for UNets that inpaint; None for the whole picture.

    Returns:
        [1, 2·C, h, w] or [1, C, h, w] float32, on the CPU.
    """
    weight = next(encoder.parameters())
    # A view of [1, H, W, 3], as diffusers has it: of a contiguous tensor the last bits would be others.
    pixels = 2.0 * torch.from_numpy((picture.astype(np.float32) / 255.0)[None].transpose(0, 3, 1, 2)) - 1.0
    if mask is not None:
        pixels = pixels * torch.from_numpy(mask == 0)[None, None]
    return encoder(pixels.to(weight.device, weight.dtype)).float().cpu()


@dataclass(frozen=True)
class LatentScale:
    """Between what an autoencoder gives and what a UNet takes.

    Attributes:
        factor: The autoencoder's `scaling_factor`.
        mean: Its `latents_mean`, by channel; None where it has none.
        std: Its `latents_std`, likewise.
    """

    factor: float
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def draw(self, moments: torch.Tensor, channels: int, generator: torch.Generator) -> torch.Tensor:
        """Latents [1, C, h, w] of a picture; those of an `AutoencoderTiny` are not drawn.

        Args:
            moments: As `encode_picture` gives them.
            channels: Of the latents.
            generator: Of the request, on the CPU.
        """
        latents = moments
        if moments.shape[1] != channels:
            mean, logvar = moments.chunk(2, dim=1)
            deviation = torch.exp(0.5 * torch.clamp(logvar, -30.0, 20.0))
            latents = mean + deviation * randn_tensor(mean.shape, generator=generator, dtype=mean.dtype)
        if self.mean is None or self.std is None:
            return self.factor * latents
        mean, std = (latents.new_tensor(each).view(1, -1, 1, 1) for each in (self.mean, self.std))
        return (latents - mean) * self.factor / std
