"""A LoRA apart from any file: two factors per module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PARTS: tuple[str, ...] = ("unet", "text_encoder", "text_encoder_2")
"""The pipeline's networks that a LoRA may change, by their names in the pipeline."""


@dataclass(frozen=True)
class Factors:
    """What a LoRA adds to one module's weight.

    Attributes:
        down: [rank, in] or, of a convolution, [rank, in, height, width].
        up: [out, rank] or, of a convolution, [out, rank, 1, 1].
        alpha: the product counts ``alpha / rank`` times.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of ``down``."""
        return len(self.down)

    def delta(self) -> Tensor:
        """The change of the weight, float32 [out, in] or [out, in, height, width]."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (self.alpha / self.rank * product).reshape(len(self.up), *self.down.shape[1:])


@dataclass(frozen=True)
class LoraWeights:
    """The factors of a whole LoRA by (part, module), such as ("unet", "mid_block.attentions.0.proj_in")."""

    factors: dict[tuple[str, str], Factors]


def resized(factors: Factors, kept_energy: float) -> Factors:
    """The smallest rank that keeps a share of the squared norm, as sd-scripts' ``resize_lora`` with ``sv_fro``.

    Args:
        factors: of a linear module or a convolution.
        kept_energy: share of the squared Frobenius norm.

    Returns:
        New factors with the same proportion of alpha to rank, so alpha differs where the rank does.
    """
    scale = factors.alpha / factors.rank
    product = factors.up.float().flatten(1) @ factors.down.float().flatten(1)
    u, s, v = torch.linalg.svd(product, full_matrices=False)
    energy = torch.cumsum(s.square(), 0) / s.square().sum()
    rank = min(factors.rank, int((energy < kept_energy).sum()) + 1)
    root = s[:rank].sqrt()
    down = (root[:, None] * v[:rank]).reshape(rank, *factors.down.shape[1:])
    up = (u[:, :rank] * root).reshape(-1, rank, *factors.up.shape[2:])
    return Factors(down, up, scale * rank)
