"""Keys and values of cross-attention: prompt and weights alone decide them; a run needs them once, not in every step.

On the CPU; a GPU spends less on making them than on fetching what was kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from diffusers.models.attention_processor import Attention

if TYPE_CHECKING:
    from collections.abc import Hashable

MOST_KEPT, MOST_BYTES = 16, 2**27
"""Batches whose projections are kept, and what they take: for SDXL's row of 77 tokens 51 MB in float32."""


class PromptProjections:
    """The `to_k` and `to_v` of a UNet's cross-attention, which from now on takes what this gives for embeddings."""

    def __init__(self, unet: torch.nn.Module) -> None:
        """Changes the UNet in place; its parameters stay."""
        self._parts: list[_Part] = []
        self._width = 0
        for attention in unet.modules():
            if isinstance(attention, Attention) and attention.is_cross_attention:
                for name in ("to_k", "to_v"):
                    part = _Part(getattr(attention, name), self._width)
                    setattr(attention, name, part)
                    self._parts.append(part)
                    self._width = part.end
        self._kept: list[_Kept] = []  # the latest first

    def __call__(self, embeddings: torch.Tensor, weights: Hashable = None) -> torch.Tensor:
        """What the halves take in place of embeddings.

        Args:
            embeddings: [B, tokens, width].
            weights: Names what is in the weights and beside them, row by row; None keeps nothing.

        Returns:
            [B, tokens, all widths], one projection after the other in each row.
        """
        for place, kept in enumerate(self._kept):
            if weights is not None and kept.is_of(embeddings, weights):
                if place:
                    self._keep(kept)
                return kept.projected
        rows, tokens, _ = embeddings.shape
        projected = embeddings.new_empty(rows, tokens, self._width)
        for part in self._parts:
            part(projected).copy_(part.projection(embeddings))
        if weights is not None and projected.nbytes <= MOST_BYTES:
            self._keep(_Kept(embeddings.clone(), weights, projected))
        return projected

    def _keep(self, latest: _Kept) -> None:
        ordered = [latest, *(other for other in self._kept if other is not latest)][:MOST_KEPT]
        totals = accumulate(each.projected.nbytes for each in ordered)
        self._kept = [each for each, total in zip(ordered, totals, strict=True) if total <= MOST_BYTES]


@dataclass(frozen=True, eq=False)
class _Kept:
    embeddings: torch.Tensor
    weights: Hashable
    projected: torch.Tensor

    def is_of(self, embeddings: torch.Tensor, weights: Hashable) -> bool:
        """Whether it is what these give; content is compared, so that nobody has to name it."""
        return self.weights == weights and torch.equal(self.embeddings, embeddings)


class _Part(torch.nn.Module):
    """Stands for a projection in its attention: finds what it gave."""

    def __init__(self, projection: torch.nn.Linear, start: int) -> None:
        super().__init__()
        self.projection, self.start, self.end = projection, start, start + projection.out_features

    def forward(self, projected: torch.Tensor) -> torch.Tensor:
        """[B, tokens, its width] of [B, tokens, all widths]."""
        tokens = projected.shape[1]
        return projected.flatten(1)[:, self.start * tokens : self.end * tokens].unflatten(1, (tokens, -1))
