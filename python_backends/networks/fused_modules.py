"""diffusers' modules with the fused operators of `kernels`: same parameters, same names, fewer trips through memory."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch.nn import functional

from ...kernels.geglu import geglu
from ...kernels.group_norm_silu import group_norm_silu
from ...kernels.memory_format import dense_format


class FusedGroupNorm(torch.nn.GroupNorm):
    """`torch.nn.GroupNorm`, followed by SiLU where `silu` is set."""

    silu = False

    def forward(self, input: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:  # noqa: A002
        """`group_norm_silu` of [N, C, …], with an embedding [N, C] added first."""
        return group_norm_silu(input, self.num_groups, self.weight, self.bias, self.eps, self.silu, embedding)


class FusedResnetBlock2D(ResnetBlock2D):
    """`ResnetBlock2D` of SD's and SDXL's networks and of their VAE; both norms are FusedGroupNorms with SiLU."""

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None, *_: object) -> torch.Tensor:
        """[B, C, h, w] → [B, C', h, w].

        Args:
            input_tensor: [B, C, h, w].
            temb: The time embedding [B, E]; None in a VAE.
        """
        hidden_states = self.conv1(self.norm1(input_tensor))
        embedding = None if temb is None else self.time_emb_proj(functional.silu(temb))
        hidden_states = self.conv2(self.norm2(hidden_states, embedding))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return input_tensor + hidden_states


class FusedGEGLU(GEGLU):
    """`GEGLU`; the projection's bias is added by the matrix product, which has it for nothing."""

    def forward(self, hidden_states: torch.Tensor, *_: object) -> torch.Tensor:
        """[…, width] → […, inner width]."""
        return geglu(self.proj(hidden_states))


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
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        image = hidden_states.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
        image = image.contiguous(memory_format=dense_format(residual))
        return (image if self.use_linear_projection else self.proj_out(image)) + residual


def fuse(network: torch.nn.Module) -> None:
    """Lets every module of a network that has a fused form compute with it, in place.

    A module keeps its identity, parameters, hooks and names: only its class changes. So LoRA maps, state dicts and
    patched weights fit before and after. On the CPU a UNet or ControlNet gives the same bits; a VAE up to roundings:
    its attention hands over channels-last tensors, and these norms keep the layout. On a GPU all do up to roundings.
    """
    for module in list(network.modules()):
        if type(module) is ResnetBlock2D and _is_plain(module):
            module.__class__ = FusedResnetBlock2D
            for norm in (module.norm1, module.norm2):
                _fuse_norm(norm, silu=True)
        elif type(module) is GEGLU:
            module.__class__ = FusedGEGLU
        elif type(module) is Transformer2DModel and module.is_input_continuous:
            module.__class__ = FusedTransformer2DModel
        elif isinstance(getattr(module, "conv_act", None), torch.nn.SiLU):
            norm = module.get_submodule("conv_norm_out")
            if _is_norm(norm):
                _fuse_norm(norm, silu=True)
                module.conv_act = torch.nn.Identity()
    for module in network.modules():
        if _is_norm(module):
            _fuse_norm(module, silu=False)


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


def _is_norm(module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.GroupNorm and module.affine
