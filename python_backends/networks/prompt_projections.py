"""Keys and values of cross-attention: prompt and weights alone decide them; a run needs them once, not in each step."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from .fused_attention import FusedAttention
from .scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Hashable

MOST_KEPT, MOST_BYTES = 16, 2**27
"""Batches whose projections are kept, and what they take on a CPU: for SDXL's row of 77 tokens 51 MB in float32."""

PLACE = 4
"""What always lies at one place has a fourth of those bytes there from the first call on; what is larger moves it."""


class KeptPrompts:
    """What a UNet takes for a batch's prompts: their embeddings, where it is and in its type, brought there once.

    Attributes:
        zeros: Rows at the beginning of the last call's that need not be given: `leading_zeros`, where `skips_zeros`.
        skips_zeros: Whether the UNet knows what fewer rows mean.
    """

    zeros = 0
    skips_zeros = False

    def __init__(
        self, device: torch.device, dtype: torch.dtype, most_bytes: int = MOST_BYTES, *, in_place: bool = False
    ) -> None:
        """Keeps nothing yet.

        Args:
            device: Where the UNet is.
            dtype: Its type.
            most_bytes: That what is kept may take.
            in_place: Whether what it gives always lies at the same place, as CUDA graphs want it; the next call
                overwrites it then.
        """
        self._device, self._dtype, self._most_bytes = device, dtype, most_bytes
        self._kept: list[_Kept] = []  # the latest first
        self._place = Scratch(device, most_bytes // PLACE) if in_place else None
        self._placed: weakref.ref[torch.Tensor] | None = None

    def __call__(self, embeddings: torch.Tensor, weights: Hashable = None) -> torch.Tensor:
        """What the halves take in place of embeddings.

        Args:
            embeddings: [B, tokens, width], float32; on the CPU, else a comparison waits for a GPU.
            weights: Names what is in the weights and beside them, row by row; None keeps nothing.
        """
        embeddings = embeddings.cpu()
        kept = self._found(embeddings, weights)
        if kept is None:
            made = self._made(embeddings.to(self._device, self._dtype))
            kept = _Kept(embeddings.clone(), weights, made, leading_zeros(embeddings) if self.skips_zeros else 0)
            if weights is not None and made.nbytes <= self._most_bytes:
                self._keep(kept)
        made, self.zeros = kept.made, kept.zeros
        if self._place is None:
            return made
        (own,) = self._place.take([made])
        if self._placed is None or self._placed() is not made:
            own.copy_(made)
            self._placed = weakref.ref(made)
        return own

    def _made(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings

    def _found(self, embeddings: torch.Tensor, weights: Hashable) -> _Kept | None:
        for place, kept in enumerate(self._kept):
            if weights is not None and kept.is_of(embeddings, weights):
                if place:
                    self._keep(kept)
                return kept
        return None

    def _keep(self, latest: _Kept) -> None:
        ordered = [latest, *(other for other in self._kept if other is not latest)][:MOST_KEPT]
        totals = accumulate(each.made.nbytes for each in ordered)
        self._kept = [each for each, total in zip(ordered, totals, strict=True) if total <= self._most_bytes]


@dataclass(frozen=True, eq=False)
class _Kept:
    embeddings: torch.Tensor
    weights: Hashable
    made: torch.Tensor
    zeros: int

    def is_of(self, embeddings: torch.Tensor, weights: Hashable) -> bool:
        """Whether it is what these give; content is compared, so that nobody has to name it."""
        return self.weights == weights and torch.equal(self.embeddings, embeddings)


class PromptProjections(KeptPrompts):
    """The `to_k` and `to_v` of a UNet's cross-attention, which from now on takes what this gives for embeddings.

    That is [B, tokens, all widths], one projection after the other in each row.
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        most_bytes: int = MOST_BYTES,
        *,
        in_place: bool = False,
        skips_zeros: bool = False,
    ) -> None:
        """Changes the UNet in place; its parameters stay.

        Args:
            unet: On its device, in its type.
            most_bytes: As for `KeptPrompts`.
            in_place: As for `KeptPrompts`.
            skips_zeros: Whether rows of zeros may be left out; where attentions are not `FusedAttention`s they are not.
        """
        weights = next(unet.parameters())
        super().__init__(weights.device, weights.dtype, most_bytes, in_place=in_place)
        self._parts: list[_Part] = []
        self._stacks: dict[torch.nn.Module, _Span] = {}
        self._width = 0
        self.skips_zeros = skips_zeros
        for stack in unet.modules():
            if not isinstance(stack, Transformer2DModel):
                continue
            first, span = self._width, _Span(self._width)
            for attention in stack.modules():
                if isinstance(attention, Attention) and attention.is_cross_attention:
                    has_bias = attention.to_k.bias is not None or attention.to_v.bias is not None
                    self.skips_zeros &= isinstance(attention, FusedAttention) and not has_bias
                    for name in ("to_k", "to_v"):
                        part = _Part(getattr(attention, name), self._width - first, span)
                        setattr(attention, name, part)
                        self._parts.append(part)
                        self._width += part.width
            span.width = self._width - first
            self._stacks[stack] = span

    def of(self, stack: torch.nn.Module, projected: torch.Tensor) -> torch.Tensor:
        """What one of the UNet's stacks takes of it, and in its place: a view, [B, tokens, the stack's widths]."""
        span = self._stacks[stack]
        return _piece(projected, span.start, span.width)

    def _made(self, embeddings: torch.Tensor) -> torch.Tensor:
        rows, tokens, _ = embeddings.shape
        projected = embeddings.new_empty(rows, tokens, self._width)
        for part in self._parts:
            part(projected).copy_(part.projection(embeddings))
        return projected


def leading_zeros(embeddings: torch.Tensor) -> int:
    """How many of the first rows are all zeros, as SDXL's empty negative prompts are, if that is a half or all of them.

    Their keys and values are zeros too, whatever LoRAs are in: these layers have no biases. Other shares than these two
    would need graphs of their own, for each number of rows.
    """
    found = int((~embeddings.flatten(1).any(1)).long().cumprod(0).sum())
    return found if found in (len(embeddings), len(embeddings) / 2) else 0


@dataclass(eq=False)
class _Span:
    """Where a stack's projections begin among all, and how wide they are together."""

    start: int
    width: int = 0


class _Part(torch.nn.Module):
    """Stands for a projection in its attention: finds what it gave, among all or among its stack's."""

    def __init__(self, projection: torch.nn.Linear, start: int, stack: _Span) -> None:
        super().__init__()
        self.projection, self.width = projection, projection.out_features
        self._start, self._stack = start, stack

    def forward(self, projected: torch.Tensor) -> torch.Tensor:
        """[B, tokens, its width] of [B, tokens, all widths or its stack's]."""
        is_of_stack = projected.shape[2] == self._stack.width
        return _piece(projected, self._start + (0 if is_of_stack else self._stack.start), self.width)


def _piece(projected: torch.Tensor, start: int, width: int) -> torch.Tensor:
    tokens = projected.shape[1]
    return projected.flatten(1)[:, start * tokens : (start + width) * tokens].unflatten(1, (tokens, -1))
