"""What rows of a UNet call cost, counted from its modules: multiply-adds, and bytes of what is not computed anew."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from .token_masks import halved

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from diffusers import UNet2DConditionModel

KEPT = 1024
"""Rows that are remembered, by sizes of latents and masks."""

PROMPT_TOKENS = 77
"""Of a prompt that is not longer than CLIP's text encoders take at a time."""


@dataclass(frozen=True)
class Features:
    """What seconds are made of; those of several rows, or stacks, add up.

    Attributes:
        cells: Latent cells that go through the convolutions; of a stack, the part that the convolutions between it and
            the one before have in all of them.
        dense: Multiply-adds of linear layers.
        score: Multiply-adds of attention: scores, and the values that they weigh.
        cached: Bytes of what blocks gave in another call.
        modules: Calls in which transformers are told what to compute, or keep: these take longer to make.
    """

    cells: float = 0.0
    dense: float = 0.0
    score: float = 0.0
    cached: float = 0.0
    modules: float = 0.0

    def __mul__(self, rows: int) -> Features:
        return Features(*(rows * each for each in astuple(self)))

    def __add__(self, other: Features) -> Features:
        return Features(
            self.cells + other.cells,
            self.dense + other.dense,
            self.score + other.score,
            self.cached + other.cached,
            self.modules + other.modules,
        )


class TokenCosts:
    """Counts what `TokenStacks` computes of rows; time embeddings and norms are left out.

    Attributes:
        convolutions: Multiply-adds for each latent cell.
        row: Counts one row; see `_row`. What was counted is remembered.
    """

    def __init__(self, unet: UNet2DConditionModel, value_bytes: float | None = None) -> None:
        """Looks at the modules; weights may lie on the meta device.

        Args:
            unet: Of SD 1.5's or SDXL's kind.
            value_bytes: Of each value that is kept; None for the UNet's own type.
        """
        self.row = lru_cache(KEPT)(self._row)
        self._value_bytes = float(unet.dtype.itemsize if value_bytes is None else value_bytes)
        self._stacks: list[_Stack] = []
        self.convolutions, before = 0.0, 0.0
        for level, part in _parts(unet):
            if hasattr(part, "transformer_blocks"):
                self._stacks.append(_Stack.of(part, level, before))
                before = 0.0
            else:
                weights = sum(each.numel() for each in part.parameters() if each.ndim == 4) / 4**level
                before, self.convolutions = before + weights, self.convolutions + weights

    def _row(
        self,
        height: int,
        width: int,
        sizes: tuple[int, ...] | None = None,
        prompt: int = PROMPT_TOKENS,
        lacks: frozenset[int] = frozenset(),
    ) -> Features:
        """Of one row.

        Args:
            height: Of the latents.
            width: The same.
            sizes: Masked tokens by level, from the finest, as `TokenMask.sizes`; None where all are computed.
            prompt: Its tokens.
            lacks: Blocks, by their numbers, whose stacks compute all tokens all the same.
        """
        stacks, number = [], 0
        for stack in self._stacks:
            is_whole = not lacks.isdisjoint(range(number, number + stack.blocks))
            stacks.append(self._of_stack(stack, height, width, None if is_whole else sizes, prompt))
            number += stack.blocks
        whole = sum(stacks, Features())
        return Features(height * width, whole.dense, whole.score, whole.cached)

    def stacks(
        self, height: int, width: int, sizes: Sequence[int] | None = None, prompt: int = PROMPT_TOKENS
    ) -> tuple[Features, ...]:
        """Of each stack of a row, in the order of the call; arguments are those of `row`."""
        return tuple(self._of_stack(each, height, width, sizes, prompt) for each in self._stacks)

    def _of_stack(self, stack: _Stack, height: int, width: int, sizes: Sequence[int] | None, prompt: int) -> Features:
        tokens = halved(height, stack.level) * halved(width, stack.level)
        own = tokens if sizes is None else sizes[stack.level]
        return Features(
            cells=height * width * stack.before / self.convolutions,
            dense=tokens * stack.of_all + own * stack.of_masked + prompt * stack.of_prompt,
            score=own * (tokens * stack.self_attention + prompt * stack.cross_attention),
            cached=0.0 if sizes is None else tokens * stack.kept * self._value_bytes,
        )


@dataclass(frozen=True)
class _Stack:
    """One stack, all its blocks together.

    Attributes:
        level: Of the UNet, from the finest.
        before: Multiply-adds of the convolutions since the stack before, for each latent cell.
        of_all: Multiply-adds for each token, masked or not: into the stack, keys, values.
        of_masked: For each masked token: the rest of the blocks, out of the stack.
        of_prompt: For each token of the prompt: keys and values of cross-attention.
        self_attention: For each masked token and each token.
        cross_attention: For each masked token and each of the prompt.
        kept: Values for each token.
        blocks: How many.
    """

    level: int
    before: float
    of_all: int
    of_masked: int
    of_prompt: int
    self_attention: int
    cross_attention: int
    kept: int
    blocks: int

    @classmethod
    def of(cls, stack: Any, level: int, before: float) -> _Stack:
        """What a `Transformer2DModel` has."""
        blocks = list(stack.transformer_blocks)
        own = [part for block in blocks for part in (block.attn1.to_q, block.attn1.to_out, block.attn2.to_q)]
        own += [part for block in blocks for part in (block.attn2.to_out, block.ff)]
        return cls(
            level,
            before,
            _weights(stack.proj_in, *(part for block in blocks for part in (block.attn1.to_k, block.attn1.to_v))),
            _weights(stack.proj_out, *own),
            _weights(*(part for block in blocks for part in (block.attn2.to_k, block.attn2.to_v))),
            sum(2 * block.attn1.inner_dim for block in blocks),
            sum(2 * block.attn2.inner_dim for block in blocks),
            (len(blocks) - 1) * stack.inner_dim + stack.out_channels,
            len(blocks),
        )


def _weights(*modules: torch.nn.Module) -> int:
    """Of linear layers in them, and of convolutions that are no more than that: multiply-adds for each token."""
    return sum(each.numel() for module in modules for each in module.parameters() if each.ndim > 1)


def _parts(unet: Any) -> Iterator[tuple[int, Any]]:
    """Everything with convolutions, and the stacks, as they are called; with the level of what they give."""
    coarsest = len(unet.down_blocks) - 1
    yield 0, unet.conv_in
    for level, block in enumerate(unet.down_blocks):
        yield from _layers(level, block.resnets, getattr(block, "attentions", ()))
        yield from ((level + 1, each) for each in block.downsamplers or ())
    if unet.mid_block is not None:
        first, *others = unet.mid_block.resnets
        yield coarsest, first
        for stack, layer in zip(unet.mid_block.attentions, others, strict=True):
            yield from ((coarsest, each) for each in (stack, layer) if each is not None)
    for number, block in enumerate(unet.up_blocks):
        yield from _layers(coarsest - number, block.resnets, getattr(block, "attentions", ()))
        yield from ((coarsest - number - 1, each) for each in block.upsamplers or ())
    yield 0, unet.conv_out


def _layers(level: int, layers: Sequence[Any], stacks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    for pair in zip_longest(layers, stacks):
        yield from ((level, each) for each in pair if each is not None)
