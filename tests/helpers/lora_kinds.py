"""One LoRA of every kind that goes into a UNet in a way of its own."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

import lora_files
from lora_files import MadeLora
from swiftdiffusion.python_backends.lora.files.modules import BaseModules, adaptable_weights
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint


@torch.no_grad()
def eight_kinds(checkpoint: Checkpoint) -> dict[str, MadeLora]:
    """Low-rank factors of linear layers and convolutions, products of such, differences, and what is merged with W0."""
    modules = BaseModules.of(checkpoint)
    shapes = modules.shapes["unet"]
    unet = UNet2DConditionModel.from_pretrained(checkpoint.path, subfolder="unet")
    weights = {name: weight.clone() for name, weight in adaptable_weights(unet).items()}
    queries, values, outputs, attention = (
        {name: shape for name, shape in shapes.items() if part in name} for part in ("to_q", "to_v", "to_out", "attn")
    )
    convolutions = {name: shape for name, shape in shapes.items() if len(shape) == 4 and shape[-1] == 3}
    return {
        "peft": lora_files.peft({"unet": attention}, rank=2),
        "kohya": lora_files.kohya({"unet": dict(shapes)}, lambda number: number % 3 + 1, seed=4),
        "locon": lora_files.locon_with_mid(convolutions),
        "loha": lora_files.loha(attention),
        "lokr": lora_files.lokr(attention, left=False, right=True),
        "dora": lora_files.dora(
            lora_files.kohya({"unet": values}), {("unet", name): weights[name] for name in values}, "output"
        ),
        "oft": lora_files.oft({name: weights[name] for name in {**queries, **outputs}}),
        "norms": lora_files.differences({}, {"unet": modules.vectors["unet"]}),
    }
