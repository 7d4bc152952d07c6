"""Writes LoRAs as people's files have them, and reads them back, each tensor where its format says.

Formats: diffusers' own, as ``save_lora_weights`` writes it (alphas in the metadata), and sd-scripts' ("kohya"), in
which dots become underscores, each module has an ``alpha`` and the UNet's blocks are numbered as in Stability's code.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .factors import PARTS, Factors, LoraWeights
from .recipes import Recipe

_KOHYA_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
_BLOCK = re.compile(
    r"(?P<side>down_blocks|mid_block|up_blocks)\.((?P<block>\d+)\.)?"
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<rest>.+)"
)
_OUTSIDE_BLOCKS = {"conv_in": "input_blocks.0.0", "conv_out": "out.2"}
_RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def stability_name(module: str, layers_per_block: int) -> str:
    """The name of one of the UNet's modules in Stability's code, from which sd-scripts makes its keys for SDXL.

    Args:
        module: diffusers' name, such as ``down_blocks.1.attentions.0.proj_in``.
        layers_per_block: of the UNet.

    Returns:
        Such as ``input_blocks.3.1.proj_in``.

    Raises:
        ValueError: the module has no name there that is known here.
    """
    if module in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[module]
    match = _BLOCK.fullmatch(module)
    if match is None:
        raise ValueError(f"{module!r} is in none of the UNet's blocks")
    side, kind, rest = match["side"], match["kind"], match["rest"]
    layer = int(match["layer"])
    first = int(match["block"] or 0) * (layers_per_block + 1)
    if kind == "resnets":
        rest = _RESNET_NAMES[rest]
    if side == "mid_block":
        head = f"middle_block.{1 if kind == 'attentions' else 2 * layer}"
    elif kind == "downsamplers":
        head, rest = f"input_blocks.{first + layers_per_block + 1}.0", "op"
    elif kind == "upsamplers":
        head = f"output_blocks.{first + layers_per_block}.2"
    else:
        head = f"input_blocks.{first + layer + 1}" if side == "down_blocks" else f"output_blocks.{first + layer}"
        head = f"{head}.{1 if kind == 'attentions' else 0}"
    return f"{head}.{rest}"


def kohya_name(part: str, module: str, layers_per_block: int) -> str:
    """The stem of a module's keys, such as ``lora_unet_input_blocks_3_1_proj_in``."""
    if part == "unet":
        module = stability_name(module, layers_per_block)
    elif not module.startswith("text_model."):  # the first encoder of transformers 5 has no such level
        module = f"text_model.{module}"
    return f"{_KOHYA_PREFIXES[part]}_{module.replace('.', '_')}"


def save_kohya(weights: LoraWeights, path: Path, layers_per_block: int) -> None:
    """Writes linear modules and convolutions with sd-scripts' names and float16 tensors, alphas per module."""
    tensors: dict[str, Tensor] = {}
    for (part, module), factors in weights.factors.items():
        name = kohya_name(part, module, layers_per_block)
        tensors[f"{name}.lora_down.weight"] = factors.down.half().contiguous()
        tensors[f"{name}.lora_up.weight"] = factors.up.half().contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(factors.alpha, dtype=torch.float16)
    ranks = {factors.rank for factors in weights.factors.values()}
    dimension = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
    save_file(tensors, path, metadata={"ss_network_module": "networks.lora", "ss_network_dim": dimension})


def save_peft(weights: LoraWeights, config: LoraConfig, path: Path) -> None:
    """Writes the UNet's part with diffusers' own function, PEFT's configuration in the metadata."""
    layers = {
        f"{module}.lora_{letter}.weight": tensor.half().contiguous()
        for (_, module), factors in weights.factors.items()
        for letter, tensor in (("A", factors.down), ("B", factors.up))
    }
    metadata = json.loads(json.dumps(config.to_dict(), default=lambda value: sorted(value)))
    StableDiffusionXLPipeline.save_lora_weights(
        path.parent,
        unet_lora_layers=layers,
        weight_name=path.name,
        unet_lora_adapter_metadata=metadata,
    )


def save_lora(weights: LoraWeights, recipe: Recipe, config: LoraConfig, path: Path, layers_per_block: int) -> None:
    """Writes a LoRA in its recipe's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if recipe.file_format == "peft":
        save_peft(weights, config, path)
    else:
        save_kohya(weights, path, layers_per_block)


def read_lora(path: Path, pipeline: StableDiffusionXLPipeline) -> LoraWeights:
    """Reads any of the family's files.

    Args:
        path: the file.
        pipeline: its modules' names tell which module a key means.

    Raises:
        KeyError: the file names a module that the pipeline has not.
    """
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    names = {
        kohya_name(part, module, pipeline.unet.config.layers_per_block): (part, module)
        for part in PARTS
        for module, layer in getattr(pipeline, part).named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        and (part != "unet" or module in _OUTSIDE_BLOCKS or _BLOCK.fullmatch(module))
    }
    found: dict[tuple[str, str], Factors] = {}
    for key, down in tensors.items():
        if key.endswith(".lora_down.weight"):
            stem = key.removesuffix(".lora_down.weight")
            found[names[stem]] = Factors(down, tensors[f"{stem}.lora_up.weight"], float(tensors[f"{stem}.alpha"]))
        elif key.endswith(".lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            part, module = stem.split(".", 1)
            getattr(pipeline, part).get_submodule(module)
            alpha = float(metadata.get(f"{part}.lora_alpha", len(down)))
            found[part, module] = Factors(down, tensors[f"{stem}.lora_B.weight"], alpha)
    return LoraWeights(found)
