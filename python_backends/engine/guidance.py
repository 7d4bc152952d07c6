"""Classifier-free guidance as in diffusers' pipelines: halves, rescaling, and the embedding where it is distilled."""

from __future__ import annotations

import torch

UNCONDITIONAL, CONDITIONAL = 0, 1
"""Rows of a request's conditioning: the two halves of classifier-free guidance."""


def guidance_embedding(guidance_scale: float, width: int) -> torch.Tensor:
    """[1, width] for a guidance-distilled UNet: `get_guidance_scale_embedding` of diffusers' pipelines, to the bit.

    (They import transformers, which takes a shard longer than loading its UNet.)
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = torch.tensor([guidance_scale - 1.0])[:, None] * 1000.0 * frequencies[None, :]
    return torch.nn.functional.pad(torch.cat([torch.sin(angles), torch.cos(angles)], dim=1), (0, width % 2))


def rescaled(guided: torch.Tensor, conditional: torch.Tensor, share: float) -> torch.Tensor:
    """A guided prediction [1, C, h, w], a share of it with the standard deviation of the conditional one.

    Section 3.4 of Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (2023): at zero terminal
    SNR guidance overexposes. It is diffusers' `rescale_noise_cfg`.
    """
    if share == 0:
        return guided
    return share * (guided * (conditional.std() / guided.std())) + (1 - share) * guided
