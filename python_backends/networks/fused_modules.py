"""diffusers' modules with the fused operators of `kernels`: same parameters, same names, fewer trips through memory."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch.nn import functional

from ...kernels.bias_residual import bias_residual
from ...kernels.geglu import geglu
from ...kernels.group_norm_silu import group_norm_silu
from .fused_attention import are_hooked, fuse_attentions
from .fused_transformer import FusedTransformer2DModel, NormedTransformer2DModel, is_plain_block
from .savings import EXACT, Savings


class FusedGroupNorm(torch.nn.GroupNorm):
    """`torch.nn.GroupNorm`, followed by SiLU where `silu` is set."""

    silu = False

    def forward(self, input: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:  # noqa: A002
        """`group_norm_silu` of [N, C, …], with an embedding [N, C] added first."""
        return group_norm_silu(input, self.num_groups, self.weight, self.bias, self.eps, self.silu, embedding)


class FusedResnetBlock2D(ResnetBlock2D):
    """`ResnetBlock2D` of SD's and SDXL's networks and of their VAE; both norms are FusedGroupNorms with SiLU.

    Attributes:
        joins_biases: Whether the convolutions' biases are added with the time embedding and the residual.
        of_time: Where its own is among what `TimeProjections` gives; None where it is given the time embedding.
    """

    joins_biases = False
    of_time: slice | None = None

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None, *_: object) -> torch.Tensor:
        """[B, C, h, w] → [B, C', h, w].

        Args:
            input_tensor: [B or less, C, h, w]; fewer rows are those of the first time embeddings.
            temb: The time embedding [B, E], or what `TimeProjections` gave; None in a VAE.
        """
        embedding = None if temb is None else self._of_time(temb[: input_tensor.shape[0]])
        if self.joins_biases and not are_hooked(self.conv1, self.conv2, self.conv_shortcut):
            return self._with_joined_biases(input_tensor, embedding)
        hidden_states = self.conv1(self.norm1(input_tensor))
        hidden_states = self.conv2(self.norm2(hidden_states, embedding))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return input_tensor + hidden_states

    def _of_time(self, temb: torch.Tensor) -> torch.Tensor:
        return self.time_emb_proj(functional.silu(temb)) if self.of_time is None else temb[:, self.of_time]

    def _with_joined_biases(self, input_tensor: torch.Tensor, embedding: torch.Tensor | None) -> torch.Tensor:
        shift, bias = self.conv1.bias.expand(input_tensor.shape[0], -1), self.conv2.bias
        hidden_states = _without_bias(self.conv1, self.norm1(input_tensor))
        hidden_states = self.norm2(hidden_states, shift if embedding is None else embedding + shift)
        if self.conv_shortcut is not None:
            input_tensor, bias = _without_bias(self.conv_shortcut, input_tensor), bias + self.conv_shortcut.bias
        return bias_residual(_without_bias(self.conv2, hidden_states), bias, input_tensor)


class FusedGEGLU(GEGLU):
    """`GEGLU`; the projection's bias is added by the matrix product, which has it for nothing."""

    def forward(self, hidden_states: torch.Tensor, *_: object) -> torch.Tensor:
        """[…, width] → […, inner width]."""
        return geglu(self.proj(hidden_states))


def fuse(network: torch.nn.Module, savings: Savings = EXACT) -> None:
    """Lets every module of a network that has a fused form compute with it, in place.

    A module keeps its identity, parameters, hooks and names: only its class changes. So LoRA maps, state dicts and
    patched weights fit before and after. On the CPU a UNet or ControlNet gives the same bits; a VAE up to roundings:
    its attention hands over channels-last tensors, and these norms keep the layout. On a GPU all do up to roundings.

    Args:
        network: Changed.
        savings: What else is left out or done together.
    """
    modules: list[Any] = list(network.modules())
    for module in modules:
        if type(module) is ResnetBlock2D and _is_plain(module):
            module.__class__ = FusedResnetBlock2D
            module.joins_biases = savings.biases and _has_biases(module)
            for norm in (module.norm1, module.norm2):
                _fuse_norm(norm, silu=True)
        elif type(module) is GEGLU:
            module.__class__ = FusedGEGLU
        elif type(module) is Transformer2DModel and module.is_input_continuous:
            joins = savings.norms and all(map(is_plain_block, module.transformer_blocks))
            module.__class__ = NormedTransformer2DModel if joins else FusedTransformer2DModel
        elif isinstance(getattr(module, "conv_act", None), torch.nn.SiLU):
            norm = module.get_submodule("conv_norm_out")
            if _is_norm(norm):
                _fuse_norm(norm, silu=True)
                module.conv_act = torch.nn.Identity()
    for module in network.modules():
        if _is_norm(module):
            _fuse_norm(module, silu=False)
    if savings.divisions:
        fuse_attentions(network)


def _fuse_norm(norm: Any, silu: bool) -> None:
    norm.__class__ = FusedGroupNorm
    norm.silu = silu


def _is_plain(block: ResnetBlock2D) -> bool:
    """Whether a block has nothing that FusedResnetBlock2D leaves out. A VAE's has a norm called "group" and no time."""
    return (
        (block.time_embedding_norm == "default" or block.time_emb_proj is None)
        and isinstance(block.nonlinearity, torch.nn.SiLU)
        and not (block.up or block.down or block.skip_time_act)
        and block.output_scale_factor == 1.0
        and block.dropout.p == 0.0
        and _is_norm(block.norm1)
        and _is_norm(block.norm2)
    )


def _has_biases(block: ResnetBlock2D) -> bool:
    layers = [layer for layer in (block.conv1, block.conv2, block.conv_shortcut) if layer is not None]
    return all(layer.bias is not None and layer.padding_mode == "zeros" for layer in layers)


def _without_bias(layer: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def _is_norm(module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.GroupNorm and module.affine
