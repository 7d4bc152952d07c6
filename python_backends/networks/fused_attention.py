"""diffusers' `Attention` of SD's and SDXL's transformers without what it does for others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_processor import Attention
from torch.nn import functional

from .fp8 import Fp8Copies, Fp8Weight, linear, weight_of

if TYPE_CHECKING:
    from ..lora.patching.patcher import Patcher


class FusedAttention(Attention):
    """`Attention` with `AttnProcessor2_0`.

    Attributes:
        qkv: What `to_q`, `to_k` and `to_v` multiply by as one, [3 · width, in]: a view of theirs; None where they do
            not lie beside each other.
    """

    qkv: torch.Tensor | Fp8Weight | None = None

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, **_: object
    ) -> torch.Tensor:
        """[B, tokens, width] → [B, tokens, width].

        Args:
            hidden_states: [B, tokens, width].
            encoder_hidden_states: What `to_k` and `to_v` take, [B or less, …]; None for self-attention. With fewer rows
                than B, the first ones' keys and values are zeros, and these rows get `to_out`'s bias.
        """
        if encoder_hidden_states is None:
            return self.to_out[0](self._mixed(*self._of_itself(hidden_states)))
        zeros = hidden_states.shape[0] - encoder_hidden_states.shape[0]  # not `len`: exporters follow shapes
        keys, values = self.to_k(encoder_hidden_states), self.to_v(encoder_hidden_states)
        if not zeros:
            return self.to_out[0](self._mixed(self.to_q(hidden_states), keys, values))
        out, last = hidden_states.new_empty(hidden_states.shape), self.to_out[0]  # contiguous
        out[:zeros] = last.bias
        if keys.shape[0]:
            mixed = self._mixed(self.to_q(hidden_states[zeros:]), keys, values)
            linear(mixed, weight_of(last), last.bias, out=out[zeros:])
        return out

    def _of_itself(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        layers = self.to_q, self.to_k, self.to_v
        if self.qkv is None or any(are_hooked(layer) for layer in layers):
            return tuple(layer(hidden_states) for layer in layers)
        return linear(hidden_states, self.qkv).chunk(3, dim=-1)

    def _mixed(self, *qkv: torch.Tensor) -> torch.Tensor:
        heads = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in qkv)
        return functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def are_hooked(*modules: torch.nn.Module | None) -> bool:
    """Whether any has something to add to what it gives, as LoRAs beside the weights have: it must be called then."""
    return any(module is not None and bool(module._forward_hooks) for module in modules)


def fuse_attentions(network: torch.nn.Module) -> None:
    """Changes the class of a network's attentions in place, where they have nothing that FusedAttention leaves out."""
    for module in network.modules():
        if type(module) is Attention and _is_plain(module):
            module.__class__ = FusedAttention


def _is_plain(attention: Any) -> bool:
    others = (
        attention.spatial_norm,
        attention.group_norm,
        attention.norm_q,
        attention.norm_k,
        attention.norm_cross,
        attention.added_kv_proj_dim,
        attention.residual_connection,
        attention.dropout,
    )
    return not any(others) and attention.rescale_output_factor == 1.0 and attention.to_out[0].bias is not None


def join_projections(weights: Patcher | Fp8Copies, component: str, network: torch.nn.Module) -> None:
    """Lets self-attentions whose q, k and v a patcher has laid beside each other compute them in one product."""
    for name, module in network.named_modules():
        if isinstance(module, FusedAttention) and not module.is_cross_attention and module.to_q.bias is None:
            module.qkv = weights.joined(component, [f"{name}.{layer}" for layer in ("to_q", "to_k", "to_v")])
