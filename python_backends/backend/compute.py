"""Where and in what precision a model computes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..common.library_messages import silence_diffusers
from ..networks.checkpoint import Checkpoint
from ..networks.runtimes import TORCH, Runtime
from ..shared_memory.user_cache import user_cache_directory
from .memory import return_freed_memory

if TYPE_CHECKING:
    from .settings import ModelSettings

KERNELS_VARIABLE = "TRITON_CACHE_DIR"
"""The Triton language's, for where it keeps what it has compiled; its own choice is in HOME, which may be read-only."""


@dataclass(frozen=True)
class ComputeSettings:
    """Where and in what precision a model instance computes.

    Attributes:
        checkpoint: The served checkpoint; a relative path counts from the repository's directory.
        device: Its `instance_group`'s GPU, else the CPU.
        dtype: Floating-point type of weights and activations.
        runtime: What evaluates a UNet or ControlNet: see `networks.runtimes`.
    """

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    runtime: Runtime

    @classmethod
    def from_settings(cls, settings: ModelSettings) -> ComputeSettings:
        """Reads the parameters and prepares the process: threads, no gradients, no progress bars in the server's log.

        Freed memory is returned from now on, until `keep_freed_memory`.
        """
        return_freed_memory()
        torch.set_num_threads(int(settings.parameters["threads"]))
        torch.set_grad_enabled(False)
        silence_diffusers()
        device = torch.device("cpu" if settings.gpu is None else f"cuda:{settings.gpu}")
        if device.type == "cuda":
            torch.cuda.set_device(device)
            if KERNELS_VARIABLE not in os.environ:
                os.environ[KERNELS_VARIABLE] = str(user_cache_directory("kernels"))
        return cls(
            checkpoint=Checkpoint(settings.required_path("checkpoint")),
            device=device,
            dtype=getattr(torch, settings.parameters["dtype"]),
            runtime=Runtime(
                settings.parameters.get("runtime", TORCH),
                settings.path("engines") or Path(),
                fp8=settings.parameters.get("fp8") == "1",
            ),
        )
