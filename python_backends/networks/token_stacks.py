"""The transformer stacks of a UNet over the tokens of a mask alone.

Masked tokens go through the blocks, and attend to all; what each block makes of the others is known beforehand, from a
step that computed it (InstGenIE / FlashPS, figure 5). Convolutions, norms and what a stack takes in are computed for
the whole picture. With what the same input would give, nothing changes but roundings.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from .fused_transformer import is_plain_block
from .stack_modules import StackModules

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from diffusers import UNet2DConditionModel

    from .cuda_graphs import Outside
    from .stack_modules import Keep, Known
    from .token_masks import Side

Values = list[list[torch.Tensor]]
"""What the stacks' blocks give, in their order, of each of some rows: [tokens, width] after every block but a stack's
last, and what the stack adds to the picture after that. Each has memory of its own."""


@dataclass(frozen=True)
class MaskedRows:
    """Neighbours in a call of which as many tokens are masked.

    Attributes:
        rows: Of the batch.
        places: Height and width of a level → int64 [rows, M]: the places of every row's masked tokens; None where all
            are computed.
        known: Fills an empty tensor with what a block, by its number among `Values`, gives for all tokens of the rows:
            [rows, tokens, width].
        unknown: Blocks of which nothing is known: their stacks compute all tokens.
    """

    rows: slice
    places: Mapping[Side, torch.Tensor] | None = None
    known: Known = lambda _number, empty: empty
    unknown: Collection[int] = ()

    def computes_all(self, blocks: range) -> bool:
        """Whether a stack of these blocks computes all tokens."""
        return self.places is None or any(block in self.unknown for block in blocks)


class StackCalls(Protocol):
    """How a stack is called over some rows of a call."""

    def over_all(
        self, rows: slice, hidden_states: torch.Tensor, prompts: torch.Tensor, keep: Keep | None
    ) -> torch.Tensor:
        """`stack_modules.over_all` of them."""

    def over_masked(
        self, rows: slice, hidden_states: torch.Tensor, prompts: torch.Tensor, places: torch.Tensor, known: Known
    ) -> torch.Tensor:
        """`stack_modules.over_masked` of them."""


def _called(function: Outside, *inputs: torch.Tensor) -> torch.Tensor:
    return function(*inputs)


class TokenStacks:
    """The stacks of one UNet, whose forward passes are others only within `recorded` and `masked`.

    Attributes:
        levels: Of each of `Values`, the UNet's level, from the finest.
        widths: Of each of `Values`.
        blocks: Of each stack, how many of `Values` are its.
    """

    def __init__(
        self, unet: UNet2DConditionModel, calls: Callable[[Any], StackCalls] = StackModules, outside: Outside = _called
    ) -> None:
        """Changes nothing yet.

        Args:
            unet: The module.
            calls: Calls one of its stacks.
            outside: Calls a function and gives what that gives; as the halves must, that call the stacks.

        Raises:
            ValueError: If a stack's blocks are of another kind than SD 1.5's and SDXL's.
        """
        downs, ups = list(enumerate(unet.down_blocks)), list(enumerate(reversed(unet.up_blocks)))
        middle = [] if unet.mid_block is None else [(len(downs) - 1, unet.mid_block)]
        self._outside = outside
        self._stacks: list[tuple[Transformer2DModel, StackCalls]] = []
        self._parts: Sequence[MaskedRows] = ()
        self._kept: Sequence[int] = ()
        self._values: Values = []
        self.levels: list[int] = []
        self.widths: list[int] = []
        self.blocks: list[int] = []
        for level, part in (*downs, *middle, *reversed(ups)):
            for stack in part.modules():
                if isinstance(stack, Transformer2DModel):
                    self._stacks.append((stack, calls(stack)))
                    self.blocks.append(len(stack.transformer_blocks))
                    self.levels += [level] * len(stack.transformer_blocks)
                    self.widths += [stack.inner_dim] * (len(stack.transformer_blocks) - 1) + [stack.out_channels]
        for stack, _ in self._stacks:
            for block in stack.transformer_blocks:
                if not is_plain_block(block):
                    raise ValueError("a transformer block of a kind that SD 1.5 and SDXL do not have")

    @property
    def are_told(self) -> bool:
        """Whether calls now are others than those of the modules."""
        return bool(self._parts or self._kept)

    @contextmanager
    def recorded(self, rows: Sequence[int]) -> Iterator[Values]:
        """What the stacks give for these rows of the calls meanwhile; the calls are what they are without.

        Args:
            rows: Of those that compute all tokens, which come first.
        """
        self._kept, self._values = rows, [[torch.empty(0)] * len(rows) for _ in self.levels]
        with self._changed():
            try:
                yield self._values
            finally:
                self._kept, self._values = (), []  # they are the caller's alone

    @contextmanager
    def masked(self, parts: Sequence[MaskedRows]) -> Iterator[None]:
        """Calls meanwhile compute masked tokens only; convolutions, all rows together.

        Args:
            parts: Of the batch, in its order, all of it.
        """
        self._parts = parts
        with self._changed():
            try:
                yield
            finally:
                self._parts = ()

    @contextmanager
    def _changed(self) -> Iterator[None]:
        """Meanwhile the stacks' forward passes are `_in_parts`."""
        number, changed = 0, []
        for stack, calls in self._stacks:
            blocks = range(number, number := number + len(stack.transformer_blocks))
            if self.are_told and "forward" not in vars(stack):
                stack.forward = partial(self._forward, partial(self._in_parts, calls, blocks))
                changed.append(stack)
        try:
            yield
        finally:
            for stack in changed:
                del stack.forward

    def _forward(
        self, over: Outside, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object
    ) -> tuple[torch.Tensor]:
        """In place of `Transformer2DModel.forward`, [B, C, h, w] → [B, C, h, w]."""
        return (self._outside(over, hidden_states, encoder_hidden_states),)

    def _in_parts(
        self, calls: StackCalls, blocks: range, hidden_states: torch.Tensor, prompts: torch.Tensor
    ) -> torch.Tensor:
        parts = self._parts or (MaskedRows(slice(0, len(hidden_states))),)
        if len(parts) == 1:
            return self._part(calls, blocks, parts[0], hidden_states, prompts)
        given = torch.empty_like(hidden_states)
        for part in parts:
            given[part.rows] = self._part(calls, blocks, part, hidden_states, prompts)
        return given

    def _part(
        self, calls: StackCalls, blocks: range, part: MaskedRows, hidden_states: torch.Tensor, prompts: torch.Tensor
    ) -> torch.Tensor:
        if not part.computes_all(blocks):
            assert part.places is not None, "else all is computed"
            height, width = hidden_states.shape[2:]
            known = partial(_numbered, part.known, blocks.start)
            return calls.over_masked(part.rows, hidden_states, prompts, part.places[height, width], known)
        begin = part.rows.start
        kept = [(place, row - begin) for place, row in enumerate(self._kept) if begin <= row < part.rows.stop]

        def keep(number: int, tokens: torch.Tensor) -> None:
            for place, row in kept:
                own = tokens[row].clone(memory_format=torch.contiguous_format)
                self._values[blocks.start + number][place] = own

        return calls.over_all(part.rows, hidden_states, prompts, keep if kept and part.places is None else None)


def _numbered(known: Known, begin: int, number: int, empty: torch.Tensor) -> torch.Tensor:
    """What is known of a block that is so many after another."""
    return known(begin + number, empty)
