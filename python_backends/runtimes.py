"""What evaluates a UNet or a ControlNet.

| runtime | on a GPU | on the CPU |
|---|---|---|
| `torch` | fused operators, channels-last, CUDA graphs | traced graphs, in float32 |
| `compile` | torch.compile of diffusers' own modules, channels-last | the same, contiguous |
| `tensorrt` | engines that `build-engines` built | none |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..kernels.triton_language import require_triton
from .cuda_graphs import CudaGraphs
from .fused_modules import fuse

TORCH, COMPILE, TENSORRT = RUNTIMES = ("torch", "compile", "tensorrt")
Call = Callable[..., Any]


class RuntimeUnavailableError(ImportError):
    """The chosen runtime cannot run here; the message says what it lacks."""


@dataclass(frozen=True)
class Runtime:
    """A choice.

    Attributes:
        name: One of RUNTIMES.
        engines: Directory of TensorRT engines.
    """

    name: str = TORCH
    engines: Path = Path()

    def __post_init__(self) -> None:
        if self.name not in RUNTIMES:
            raise RuntimeUnavailableError(f"runtime is {self.name!r}; allowed: {', '.join(RUNTIMES)}")

    def prepare(self, network: torch.nn.Module, device: torch.device) -> None:
        """Gets a network on its device ready, in place and before its weights are moved.

        Raises:
            MissingTritonError: On a GPU without the `triton` package.
        """
        if device.type != "cuda":
            return
        require_triton(f"runtime {self.name} on a GPU")
        if self.name == TORCH:
            fuse(network)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its stubs

    def traces(self, device: torch.device) -> bool:
        """Whether modules are traced there."""
        return self.name == TORCH and device.type == "cpu"

    def calls(self, *modules: torch.nn.Module, device: torch.device) -> tuple[Call, ...]:
        """Modules that are called one after the other, each with what the one before gave, as this runtime calls them.

        On a GPU what they give is overwritten by the next call.
        """
        if self.name == COMPILE:
            return tuple(torch.compile(module) for module in modules)
        if device.type != "cuda":
            return modules
        pool = torch.cuda.graph_pool_handle()
        return tuple(CudaGraphs(module, pool, adopts=number > 0) for number, module in enumerate(modules))
