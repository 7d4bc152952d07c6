"""Previews that cost nothing: a linear map from a latent cell to its colour.

An autoencoder's latents hold, beside detail, the colours of a picture eight times smaller, nearly linearly. The map is
fitted to each autoencoder by least squares, once, when its repository is written.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import TypeAdapter

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderKL, AutoencoderTiny

PICTURES, SIDE = 12, 256
DIGITS = 3
"""Decimal digits of the map: a pixel needs no more, and machines whose sums differ in the last bits nearly always
write the same repository."""


@dataclass(frozen=True)
class LinearPreview:
    """The map of one autoencoder.

    Attributes:
        weights: [C][3]: what a latent channel adds to red, green, blue, where 0 is black and 1 full.
        bias: [3]: what there is without latents.
        error: Root of the mean squared error on pictures that it was not fitted to, likewise.
    """

    weights: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]
    error: float

    def to_json(self) -> str:
        """As it stands in a repository."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LinearPreview:
        """What `to_json` wrote."""
        return TypeAdapter(cls).validate_json(text)

    def __call__(self, latents: torch.Tensor) -> np.ndarray:
        """A picture as small as its latents.

        Args:
            latents: [C, h, w], float32, as a sampler has them.

        Returns:
            [h, w, 3] uint8.
        """
        colours = torch.einsum("chw,cr->hwr", latents, torch.tensor(self.weights)) + torch.tensor(self.bias)
        return colours.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()


@torch.no_grad()
def fit_linear_preview(vae: AutoencoderKL | AutoencoderTiny, scale_factor: int) -> LinearPreview:
    """The map of an autoencoder, from its own encoder: half of a set of drawn pictures to fit, half to measure.

    Args:
        vae: On the CPU, in float32.
        scale_factor: Pixels per latent cell.
    """
    pictures = _pictures()
    colours = torch.nn.functional.avg_pool2d(pictures, scale_factor)
    latents = torch.cat([_encode(vae, picture[None] * 2 - 1) for picture in pictures])
    cells = latents.movedim(1, -1).double()
    given = torch.cat([cells, torch.ones_like(cells[..., :1])], -1).flatten(1, 2)
    wanted = colours.movedim(1, -1).double().flatten(1, 2)
    half = len(pictures) // 2
    fitted = torch.linalg.lstsq(given[:half].flatten(0, 1), wanted[:half].flatten(0, 1)).solution
    error = ((given[half:] @ fitted).clamp(0, 1) - wanted[half:]).square().mean().sqrt()
    *weights, bias = [tuple(round(each, DIGITS) for each in row) for row in fitted.tolist()]
    return LinearPreview(tuple(weights), bias, round(float(error), DIGITS))


def _pictures() -> torch.Tensor:
    """[PICTURES, 3, SIDE, SIDE], 0 to 1: soft fields of colour, hard-edged patches of others; the same each time."""
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for index in range(PICTURES):
        cells = 2 + index % 5
        field = torch.rand(1, 3, cells, cells, generator=generator)
        picture = torch.nn.functional.interpolate(field, (SIDE, SIDE), mode="bicubic").clamp(0, 1)[0]
        for _ in range(8):
            top, left, height, width = (int(each) for each in torch.randint(8, SIDE // 2, (4,), generator=generator))
            colour = torch.rand(3, 1, 1, generator=generator)
            picture[:, 2 * top - 16 :, 2 * left - 16 :][:, :height, :width] = colour
        pictures.append(picture)
    return torch.stack(pictures)


def _encode(vae: AutoencoderKL | AutoencoderTiny, picture: torch.Tensor) -> torch.Tensor:
    """Latents as a sampler has them: what `decode` makes a picture of."""
    encoded = vae.encode(picture)
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        latents = (latents - latents.new_tensor(mean).view(1, -1, 1, 1)) / latents.new_tensor(std).view(1, -1, 1, 1)
    return latents * vae.config.scaling_factor
