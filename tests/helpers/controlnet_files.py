"""Single files of ControlNets in the names of the original Stable Diffusion code (LDM)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from swiftdiffusion.export.demo.lora.formats import stability_name

PLACES = (
    (r"time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"add_embedding\.linear_(\d)", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}"),
    (r"controlnet_cond_embedding\.conv_in", "input_hint_block.0"),
    (r"controlnet_cond_embedding\.conv_out", "input_hint_block.14"),
    (r"controlnet_cond_embedding\.blocks\.(\d+)", lambda m: f"input_hint_block.{2 * int(m[1]) + 2}"),
    (r"controlnet_down_blocks\.(\d+)", r"zero_convs.\1.0"),
    (r"controlnet_mid_block", "middle_block_out.0"),
)
"""What a ControlNet has beside a UNet's blocks."""


def in_ldm_names(tensors: Mapping[str, torch.Tensor], layers_per_block: int) -> dict[str, torch.Tensor]:
    """A ControlNet's weights by the names of LDM, as `control_model.…`."""
    names = {name: name.rpartition(".") for name in tensors}
    return {
        f"control_model.{_ldm_name(module, layers_per_block)}.{parameter}": tensors[name].clone()
        for name, (module, _, parameter) in names.items()
    }


def _ldm_name(module: str, layers_per_block: int) -> str:
    for pattern, new in PLACES:
        if re.fullmatch(pattern, module):
            return re.sub(pattern, new, module)
    return stability_name(module, layers_per_block)
