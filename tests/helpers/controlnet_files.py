"""Single files of ControlNets in the names of the original Stable Diffusion code (LDM)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
PLACES = (
    (r"conv_in\.", "input_blocks.0.0."),
    (r"time_embedding\.linear_(\d)\.", lambda m: f"time_embed.{2 * int(m[1]) - 2}."),
    (r"add_embedding\.linear_(\d)\.", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}."),
    (r"controlnet_cond_embedding\.conv_in\.", "input_hint_block.0."),
    (r"controlnet_cond_embedding\.conv_out\.", "input_hint_block.14."),
    (r"controlnet_cond_embedding\.blocks\.(\d+)\.", lambda m: f"input_hint_block.{2 * int(m[1]) + 2}."),
    (r"controlnet_down_blocks\.(\d+)\.", r"zero_convs.\1.0."),
    (r"controlnet_mid_block\.", "middle_block_out.0."),
    (r"mid_block\.resnets\.(\d)\.(\w+)\.", lambda m: f"middle_block.{2 * int(m[1])}.{RESNET[m[2]]}."),
    (r"mid_block\.attentions\.0\.", "middle_block.1."),
)


def in_ldm_names(tensors: Mapping[str, torch.Tensor], layers_per_block: int) -> dict[str, torch.Tensor]:
    """A ControlNet's weights by the names of LDM, as `control_model.…`."""
    return {f"control_model.{_ldm_name(name, layers_per_block)}": tensor.clone() for name, tensor in tensors.items()}


def _ldm_name(name: str, layers: int) -> str:
    down = re.match(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.*)", name)
    if down:
        block, kind, layer, rest = int(down[1]), down[2], int(down[3]), down[4]
        place = 1 + block * (layers + 1) + (layers if kind == "downsamplers" else layer)
        if kind == "downsamplers":
            return f"input_blocks.{place}.0.op.{rest.removeprefix('conv.')}"
        if kind == "attentions":
            return f"input_blocks.{place}.1.{rest}"
        module, _, parameter = rest.partition(".")
        return f"input_blocks.{place}.0.{RESNET[module]}.{parameter}"
    for pattern, new in PLACES:
        if re.match(pattern, name):
            return re.sub(pattern, new, name, count=1)
    raise AssertionError(f"{name} has no name in LDM")
