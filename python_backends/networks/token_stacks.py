"""The transformer stacks of a UNet over the tokens of a mask alone.

Masked tokens go through the blocks, and attend to all; what each block makes of the others is known beforehand, from a
step that computed it (InstGenIE / FlashPS, figure 5). Convolutions, norms and what a stack takes in are computed for
the whole picture. With what the same input would give, nothing changes but roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from diffusers import UNet2DConditionModel

    from .token_masks import Side

Values = list[list[torch.Tensor]]
"""What the stacks' blocks give, in their order, of each of some rows: [tokens, width] after every block but a stack's
last, and what the stack adds to the picture after that. Each has memory of its own."""

Known = Callable[[int, torch.Tensor], torch.Tensor]
RowsContext = Callable[[slice], AbstractContextManager[None]]


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


class TokenStacks:
    """The stacks of one UNet, whose forward passes are others only within `recorded` and `masked`.

    Attributes:
        levels: Of each of `Values`, the UNet's level, from the finest.
        widths: Of each of `Values`.
        blocks: Of each stack, how many of `Values` are its.
    """

    def __init__(self, unet: UNet2DConditionModel, beside: RowsContext = lambda _rows: nullcontext()) -> None:
        """Changes nothing yet.

        Args:
            unet: The module.
            beside: In what modules are called with a part of the rows, where something beside them depends on these.

        Raises:
            ValueError: If a stack's blocks are of another kind than SD 1.5's and SDXL's.
        """
        downs, ups = list(enumerate(unet.down_blocks)), list(enumerate(reversed(unet.up_blocks)))
        middle = [] if unet.mid_block is None else [(len(downs) - 1, unet.mid_block)]
        self._beside, self._records = beside, True
        self._stacks: list[Transformer2DModel] = []
        self.levels: list[int] = []
        self.widths: list[int] = []
        self.blocks: list[int] = []
        for level, part in (*downs, *middle, *reversed(ups)):
            for stack in part.modules():
                if isinstance(stack, Transformer2DModel):
                    self._stacks.append(stack)
                    self.blocks.append(len(stack.transformer_blocks))
                    self.levels += [level] * len(stack.transformer_blocks)
                    self.widths += [stack.inner_dim] * (len(stack.transformer_blocks) - 1) + [stack.out_channels]
        for stack in self._stacks:
            for block in stack.transformer_blocks:
                if block.norm_type != "layer_norm" or block.only_cross_attention or block.pos_embed is not None:
                    raise ValueError("a transformer block of a kind that SD 1.5 and SDXL do not have")

    @contextmanager
    def recorded(self, rows: Sequence[int]) -> Iterator[Values]:
        """What the stacks give for these rows of the calls meanwhile; the calls are what they are without.

        Args:
            rows: Of those that compute all tokens, which come first.
        """
        values: Values = []
        hooks = []

        def keep(_module: object, _inputs: object, output: torch.Tensor) -> None:
            if not self._records:
                return
            tokens = output if output.ndim == 3 else output.flatten(2).transpose(1, 2)
            values.append([tokens[row].clone(memory_format=torch.contiguous_format) for row in rows])

        for stack in self._stacks:
            for module in (*stack.transformer_blocks[:-1], stack.proj_out):
                hooks.append(module.register_forward_hook(keep))
        try:
            yield values
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def masked(self, parts: Sequence[MaskedRows]) -> Iterator[None]:
        """Calls meanwhile compute masked tokens only; convolutions, all rows together.

        Args:
            parts: Of the batch, in its order, all of it.
        """
        number, changed = 0, []
        for stack in self._stacks:
            blocks = range(number, number := number + len(stack.transformer_blocks))
            if not all(part.computes_all(blocks) for part in parts):
                stack.forward = partial(self._in_parts, stack, blocks, parts)
                changed.append(stack)
        try:
            yield
        finally:
            for stack in changed:
                del stack.forward

    def _in_parts(
        self,
        stack: Transformer2DModel,
        blocks: range,
        parts: Sequence[MaskedRows],
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        **_: object,
    ) -> tuple[torch.Tensor]:
        """In place of `Transformer2DModel.forward`, [B, C, h, w] → [B, C, h, w]."""
        given = []
        for part in parts:
            own, prompts = hidden_states[part.rows], encoder_hidden_states[part.rows]
            with self._beside(part.rows), self._recording(part.places is None):
                if part.computes_all(blocks):
                    given += Transformer2DModel.forward(stack, own, prompts, return_dict=False)
                else:
                    given.append(_over(stack, blocks.start, part, own, prompts))
        return (given[0] if len(given) == 1 else torch.cat(given),)

    @contextmanager
    def _recording(self, is_wanted: bool) -> Iterator[None]:
        """Whether what modules give meanwhile is what `recorded` is for."""
        self._records = is_wanted
        try:
            yield
        finally:
            self._records = True


def _over(
    stack: Transformer2DModel,
    number: int,
    part: MaskedRows,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
) -> torch.Tensor:
    """What `Transformer2DModel.forward` gives, [B, C, h, w], where its first block's number is this."""
    assert part.places is not None
    rows, _channels, height, width = hidden_states.shape
    tokens, _inner = stack._operate_on_continuous_inputs(hidden_states)
    places = part.places[height, width]
    first = torch.arange(0, rows * height * width, height * width, device=places.device)
    at = (places + first[:, None]).flatten()  # among the tokens of all rows
    own = _taken(tokens, at)
    for block in stack.transformer_blocks:
        normed = block.norm1(tokens)
        own = block.attn1(_taken(normed, at), encoder_hidden_states=normed) + own
        own = block.attn2(block.norm2(own), encoder_hidden_states=encoder_hidden_states) + own
        own = block.ff(block.norm3(own)) + own
        if block is not stack.transformer_blocks[-1]:
            tokens = _put(own, at, part.known(number, tokens.new_empty(tokens.shape)))
            number += 1
    own = _projected(stack, own)
    added = _put(own, at, part.known(number, own.new_empty(rows, height * width, own.shape[2])))
    return added.transpose(1, 2).reshape(rows, -1, height, width) + hidden_states


def _taken(tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """[B, M, width] of [B, tokens, width], at places among the tokens of all rows [B · M]."""
    return tokens.flatten(0, 1).index_select(0, at).unflatten(0, (len(tokens), -1))


def _put(own: torch.Tensor, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[B, tokens, width], in place, with [B, M, width] at these."""
    tokens.view(-1, tokens.shape[2]).index_copy_(0, at, own.flatten(0, 1))
    return tokens


def _projected(stack: Transformer2DModel, tokens: torch.Tensor) -> torch.Tensor:
    """`proj_out` of [B, M, width], where it is a convolution too."""
    if stack.use_linear_projection:
        return stack.proj_out(tokens)
    return stack.proj_out(tokens.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
