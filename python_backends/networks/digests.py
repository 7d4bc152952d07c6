"""Digests of weights and of tensors: names of what is kept, beyond the life of a process."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.nn import Module

SAMPLES = 64
"""Values of each parameter: training, or merging a LoRA, changes all values of what it changes."""


def tensors_digest(*tensors: torch.Tensor) -> str:
    """SHA-256 of types, shapes and values, as hexadecimal digits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


@torch.no_grad()
def weights_digest(network: Module) -> str:
    """SHA-256 of names, types and shapes of all parameters, and of values spread over each, as hexadecimal digits."""
    found = hashlib.sha256()
    for name, parameter in network.named_parameters():
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // SAMPLES)].float().cpu()
        found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)} ".encode())
        found.update(some.numpy().tobytes())
    return found.hexdigest()
