"""What a file is that is given as a ControlNet and is none: told by its tensors' names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

CONTROL_LORA, CHECKPOINT = "a Control-LoRA, factors on top of a UNet's weights", "a whole checkpoint"

KINDS: dict[str, str] = {
    CONTROL_LORA: r"lora_controlnet$",
    "a ControlNet-LLLite": r"lllite_",
    "an IP-Adapter": r"(image_proj|ip_adapter|image_proj_model|adapter_modules)\.",
    "a T2I-Adapter": r"(adapter\.)?body\.\d+\.(in_conv|block1|block2|resnets|downsample|down_opt)\b",
    "a LoRA": r"(lora|lycoris)_(unet|te\d?)_|.*\.(lora_[AB]|lora_up|lora_down|lora\.(up|down)|hada_w1_a|lokr_w[12])\b",
    "a textual inversion embedding": r"(emb_params|clip_[lg]|string_to_param)\b",
    CHECKPOINT: r"(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.",
    "a UNet": r"(up_blocks|output_blocks|conv_norm_out)\.",
    "a VAE": r"(encoder|decoder|quant_conv|post_quant_conv)\.",
    "a text encoder": r"text_model\.",
}
"""What → pattern of a name that only its files have. The first that fits says it."""

WITH_A_CONTROLNET = (CONTROL_LORA, CHECKPOINT)
"""Files that have a ControlNet's own tensors among theirs."""

CONTROLNET = re.compile(r"(control_model\.)?(controlnet_\w+|input_hint_block|zero_convs)\.")


def foreign_kind(names: Iterable[str]) -> str | None:
    """What a file of these tensors is, with its article; None for a ControlNet, and for what is not known.

    Args:
        names: Of all its tensors.
    """
    every = list(names)
    marked = {kind for kind, pattern in KINDS.items() if any(re.match(pattern, name) for name in every)}
    if any(CONTROLNET.match(name) for name in every):
        marked &= set(WITH_A_CONTROLNET)
    return next((kind for kind in KINDS if kind in marked), None)
