"""The transformer stacks of a UNet over the tokens of a mask alone.

Masked tokens go through the blocks, and attend to all; what each block makes of the others is known beforehand, from a
step that computed it (InstGenIE / FlashPS, figure 5). Convolutions, norms and what a stack takes in are computed for
the whole picture. With what the same input would give, nothing changes but roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
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


class TokenStacks:
    """The stacks of one UNet, whose forward passes are others only within `recorded` and `masked`.

    Attributes:
        levels: Of each of `Values`, the UNet's level, from the finest.
        widths: Of each of `Values`.
        blocks: Of each stack, how many of `Values` are its.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Changes nothing yet.

        Raises:
            ValueError: If a stack's blocks are of another kind than SD 1.5's and SDXL's.
        """
        downs, ups = list(enumerate(unet.down_blocks)), list(enumerate(reversed(unet.up_blocks)))
        middle = [] if unet.mid_block is None else [(len(downs) - 1, unet.mid_block)]
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
            rows: Of the batch.
        """
        values: Values = []
        hooks = []

        def keep(_module: object, _inputs: object, output: torch.Tensor) -> None:
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
    def masked(
        self, places: Mapping[Side, torch.Tensor], known: Known, unknown: Collection[int] = ()
    ) -> Iterator[None]:
        """Calls meanwhile compute masked tokens only.

        Args:
            places: Height and width of a level → int64 [B, M]: the places of every row's tokens.
            known: Fills an empty tensor with what a block, by its number among `Values`, gives for all tokens of the
                rows: [B, tokens, width].
            unknown: Blocks of which nothing is known: their stacks compute all tokens.
        """
        number, changed = 0, []
        for stack in self._stacks:
            blocks = range(number, number := number + len(stack.transformer_blocks))
            if not any(block in unknown for block in blocks):
                stack.forward = partial(self._over, stack, blocks.start, places, known)
                changed.append(stack)
        try:
            yield
        finally:
            for stack in changed:
                del stack.forward

    @staticmethod
    def _over(
        stack: Transformer2DModel,
        number: int,
        places: Mapping[Side, torch.Tensor],
        known: Known,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        **_: object,
    ) -> tuple[torch.Tensor]:
        """In place of `Transformer2DModel.forward`, [B, C, h, w] → [B, C, h, w]."""
        rows, _channels, height, width = hidden_states.shape
        tokens, _inner = stack._operate_on_continuous_inputs(hidden_states)
        at = places[height, width][..., None]
        for block in stack.transformer_blocks:
            normed = block.norm1(tokens)
            own = tokens.gather(1, at.expand(-1, -1, tokens.shape[2]))
            asked = normed.gather(1, at.expand(-1, -1, normed.shape[2]))
            own = block.attn1(asked, encoder_hidden_states=normed) + own
            own = block.attn2(block.norm2(own), encoder_hidden_states=encoder_hidden_states) + own
            own = block.ff(block.norm3(own)) + own
            if block is not stack.transformer_blocks[-1]:
                tokens = known(number, torch.empty_like(tokens)).scatter_(1, at.expand_as(own), own)
                number += 1
        own = _projected(stack, own)
        added = known(number, own.new_empty(rows, height * width, own.shape[2])).scatter_(1, at.expand_as(own), own)
        return (added.transpose(1, 2).reshape(rows, -1, height, width) + hidden_states,)


def _projected(stack: Transformer2DModel, tokens: torch.Tensor) -> torch.Tensor:
    """`proj_out` of [B, M, width], where it is a convolution too."""
    if stack.use_linear_projection:
        return stack.proj_out(tokens)
    return stack.proj_out(tokens.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
