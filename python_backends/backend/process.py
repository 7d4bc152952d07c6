"""A model's process, made ready to compute."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from ..common.library_messages import silence_diffusers

if TYPE_CHECKING:
    from .settings import ModelSettings

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt(3)."""


def prepare_torch(settings: ModelSettings) -> None:
    """Applies the process-wide choices: the parameter `threads`, no gradients, no progress bars in the server's log."""
    torch.set_num_threads(int(settings.parameters["threads"]))
    _keep_freed_memory()
    torch.set_grad_enabled(False)
    silence_diffusers()


def _keep_freed_memory() -> None:
    """Lets glibc reuse the memory of activations, where it would return it and fault it in again at every call."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            libc.mallopt(option, 2**30)
