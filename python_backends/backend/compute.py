"""Where and in what precision a model computes, and the process-wide choices that go with it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..common.library_messages import silence_diffusers
from ..networks.checkpoint import Checkpoint
from ..networks.runtimes import TORCH, Runtime

if TYPE_CHECKING:
    from .settings import ModelSettings

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt(3)."""


@dataclass(frozen=True)
class ComputeSettings:
    """Where and in what precision a model instance computes.

    Attributes:
        checkpoint: The served checkpoint; a relative path counts from the repository's directory.
        device: Its `instance_group`'s GPU, else the CPU.
        dtype: Floating-point type of weights and activations.
        runtime: What evaluates a UNet or ControlNet: see `runtimes`.
    """

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    runtime: Runtime

    @classmethod
    def from_settings(cls, settings: ModelSettings) -> ComputeSettings:
        """Reads the parameters `checkpoint` and `dtype`, and prepares the process."""
        prepare_torch(settings)
        engines = settings.parameters.get("engines", "")
        device = torch.device("cpu" if settings.gpu is None else f"cuda:{settings.gpu}")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return cls(
            checkpoint=Checkpoint((settings.repository / settings.parameters["checkpoint"]).resolve()),
            device=device,
            dtype=getattr(torch, settings.parameters["dtype"]),
            runtime=Runtime(settings.parameters.get("runtime", TORCH), (settings.repository / engines).resolve()),
        )


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
