"""Digests of weights and of tensors: names of what is kept, beyond the life of a process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import ModelMixin
    from transformers import PreTrainedModel

SAMPLES = 1024
"""Values of each parameter: training, or merging a LoRA, changes nearly all values of what it changes."""

CLIP = (
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "projection_dim",
    "vocab_size",
)
"""Settings of a text encoder that its numbers depend on; transformers' releases add others, and who wrote the file."""


def tensors_digest(*tensors: torch.Tensor) -> str:
    """SHA-256 of types, shapes and values, as hexadecimal digits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


@torch.no_grad()
def weights_digest(network: ModelMixin | PreTrainedModel) -> str:
    """SHA-256 of a network's settings, and of its parameters: names, types, shapes, and values from all over each."""
    if isinstance(network.config, Mapping):
        settings = {name: value for name, value in network.config.items() if not name.startswith("_")}
    else:
        settings = {name: getattr(network.config, name) for name in CLIP}
    found = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, parameter in network.named_parameters():
        flat, places = parameter.detach().reshape(-1), torch.Generator().manual_seed(0)
        if flat.numel() > SAMPLES:
            flat = flat[torch.randint(flat.numel(), (SAMPLES,), generator=places).to(flat.device)]
        found.update(f"{name} {tensors_digest(flat)} {tuple(parameter.shape)} ".encode())
    return found.hexdigest()


def files_digest(directory: Path) -> str:
    """SHA-256 of the files of a directory and of their names, as hexadecimal digits."""
    found = hashlib.sha256()
    for path in sorted(each for each in directory.iterdir() if each.is_file()):
        with path.open("rb") as file:
            found.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return found.hexdigest()
