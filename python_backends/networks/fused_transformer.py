"""diffusers' `Transformer2DModel` with fewer trips through memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from ...kernels.add_layer_norm import add_layer_norm
from ...kernels.memory_format import dense_format

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Keep = Callable[[int, torch.Tensor], None]


class FusedTransformer2DModel(Transformer2DModel):
    """`Transformer2DModel` over pictures, whose result keeps the layout of what came in: channels-last stays so."""

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> torch.Tensor:
        return projected_picture(self, hidden_states, residual) + residual


class NormedTransformer2DModel(FusedTransformer2DModel):
    """The same, whose blocks' additions are one pass with the norms after them."""

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object
    ) -> tuple[torch.Tensor]:
        """[B, C, h, w] → [B, C, h, w].

        Args:
            hidden_states: [B, C, h, w]; of fewer rows, if these are followed by the same ones.
            encoder_hidden_states: What cross-attention takes.
        """
        tokens, _inner = self._operate_on_continuous_inputs(hidden_states)
        tokens = through_blocks(self.transformer_blocks, tokens, encoder_hidden_states)
        picture = projected_picture(self, tokens, hidden_states)
        return (picture + repeated(hidden_states, picture.shape[0]),)


def through_blocks(
    blocks: Sequence[Any], tokens: torch.Tensor, prompts: torch.Tensor, keep: Keep | None = None
) -> torch.Tensor:
    """`BasicTransformerBlock.forward` of one after another, each sum together with the norm after it.

    Args:
        blocks: Of a stack.
        tokens: [B, tokens, width]; of fewer rows, if these are followed by the same ones up to the first prompts.
        prompts: What cross-attention takes, [B, …].
        keep: Told, by block, what all but the last one make of the tokens.

    Returns:
        [B, tokens, width].
    """
    normed = blocks[0].norm1(tokens)
    for number, block in enumerate(blocks):
        tokens, normed = added(block.attn1(normed), tokens, block.norm2)
        if tokens.shape[0] < prompts.shape[0]:
            tokens, normed = repeated(tokens, prompts.shape[0]), repeated(normed, prompts.shape[0])
        tokens, normed = added(block.attn2(normed, encoder_hidden_states=prompts), tokens, block.norm3)
        if block is not blocks[-1]:
            tokens, normed = added(block.ff(normed), tokens, blocks[number + 1].norm1)
            if keep is not None:
                keep(number, tokens)
    return blocks[-1].ff(normed) + tokens


def added(x: torch.Tensor, residual: torch.Tensor, norm: torch.nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum x + residual, and what a norm makes of it."""
    return add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps)


def repeated(x: torch.Tensor, rows: int) -> torch.Tensor:
    """[rows, …] of [B, …]: all rows again and again, in x's layout."""
    return x if x.shape[0] == rows else torch.cat([x] * (rows // x.shape[0]))


def projected_picture(stack: Transformer2DModel, tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`proj_out` of all tokens of pictures like [B or less, C, h, w], in its layout."""
    _rows, _channels, height, width = like.shape
    if stack.use_linear_projection:
        tokens = stack.proj_out(tokens)
    picture = (
        tokens.reshape(tokens.shape[0], height, width, -1)
        .permute(0, 3, 1, 2)
        .contiguous(memory_format=dense_format(like))
    )
    return picture if stack.use_linear_projection else stack.proj_out(picture)


def is_plain_block(block: Any) -> bool:
    """Whether a `BasicTransformerBlock` is of SD 1.5's and SDXL's kind: three LayerNorms, and nothing in between."""
    return (
        block.norm_type == "layer_norm"
        and not block.only_cross_attention
        and block.pos_embed is None
        and block.attn2 is not None
        and block.norm1.elementwise_affine
        and block._chunk_size is None
    )
