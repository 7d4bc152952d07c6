"""A transformer stack of a UNet over some rows of a call: all their tokens, or those of a mask."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from .fused_transformer import added, projected_picture, through_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    from .fused_transformer import Keep

    Known = Callable[[int, torch.Tensor], torch.Tensor]
    RowsContext = Callable[[slice], AbstractContextManager[None]]


class StackModules:
    """Calls a stack's modules."""

    def __init__(self, stack: Transformer2DModel, beside: RowsContext = lambda _rows: nullcontext()) -> None:
        """Changes nothing.

        Args:
            stack: The module.
            beside: In what modules are called with a part of the rows, where something beside them depends on these.
        """
        self._stack, self._beside = stack, beside

    def over_all(
        self, rows: slice, hidden_states: torch.Tensor, prompts: torch.Tensor, keep: Keep | None
    ) -> torch.Tensor:
        """`over_all` of some rows of a call."""
        with self._beside(rows):
            return over_all(self._stack, hidden_states[rows], prompts[rows], keep)

    def over_masked(
        self, rows: slice, hidden_states: torch.Tensor, prompts: torch.Tensor, places: torch.Tensor, known: Known
    ) -> torch.Tensor:
        """`over_masked` of some rows of a call."""
        with self._beside(rows):
            return over_masked(self._stack, hidden_states[rows], prompts[rows], places, known)


def over_all(
    stack: Transformer2DModel, hidden_states: torch.Tensor, prompts: torch.Tensor, keep: Keep | None = None
) -> torch.Tensor:
    """`Transformer2DModel.forward`, [B, C, h, w] → [B, C, h, w].

    Args:
        stack: The module.
        hidden_states: [B, C, h, w].
        prompts: What its cross-attention takes, [B, tokens, width].
        keep: Told, by block, what all tokens become: [B, h · w, width], in memory that may be overwritten later; after
            the last block what the stack adds to the picture.
    """
    tokens, _inner = stack._operate_on_continuous_inputs(hidden_states)
    tokens = through_blocks(stack.transformer_blocks, tokens, prompts, keep)
    picture = projected_picture(stack, tokens, hidden_states)
    if keep is not None:
        keep(len(stack.transformer_blocks) - 1, picture.flatten(2).transpose(1, 2))
    return picture + hidden_states


def over_masked(
    stack: Transformer2DModel,
    hidden_states: torch.Tensor,
    prompts: torch.Tensor,
    places: torch.Tensor,
    known: Known,
) -> torch.Tensor:
    """The same where masked tokens alone go through the blocks, and attend to all.

    Args:
        stack: The module.
        hidden_states: [B, C, h, w].
        prompts: As for `over_all`.
        places: int64 [B, M], of every row's masked tokens.
        known: Fills an empty tensor with what a block, by its number in the stack, gives for all tokens:
            [B, h · w, width].
    """
    rows, _channels, height, width = hidden_states.shape
    tokens, _inner = stack._operate_on_continuous_inputs(hidden_states)
    first = torch.arange(0, rows * height * width, height * width, device=places.device)
    at = (places + first[:, None]).flatten()  # among the tokens of all rows
    own = _taken(tokens, at)
    for number, block in enumerate(stack.transformer_blocks):
        normed = block.norm1(tokens)
        own, own_normed = added(block.attn1(_taken(normed, at), encoder_hidden_states=normed), own, block.norm2)
        own, own_normed = added(block.attn2(own_normed, encoder_hidden_states=prompts), own, block.norm3)
        own = block.ff(own_normed) + own
        if block is not stack.transformer_blocks[-1]:
            tokens = _put(own, at, known(number, tokens.new_empty(tokens.shape)))
    own = _projected(stack, own)
    last = len(stack.transformer_blocks) - 1
    projected = _put(own, at, known(last, own.new_empty(rows, height * width, own.shape[2])))
    return hidden_states + projected.transpose(1, 2).reshape(rows, -1, height, width)  # in the layout of the first


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
