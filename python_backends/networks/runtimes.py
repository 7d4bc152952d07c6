"""What evaluates a UNet or a ControlNet.

| runtime | on a GPU | on the CPU |
|---|---|---|
| `torch` | fused operators, channels-last, CUDA graphs | traced graphs, in float32 |
| `compile` | torch.compile of diffusers' own modules, channels-last | the same, contiguous |
| `tensorrt` | engines that `build-engines` built | none |
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...kernels.triton_language import require_triton
from ..lora.files.modules import UNET
from ..lora.patching.beside import BesideLoras
from ..lora.patching.patcher import Patcher
from .cuda_graphs import CaptureSite, CudaGraphs
from .fused_modules import fuse
from .prompt_projections import PromptProjections
from .token_stacks import TokenStacks
from .unet_halves import DecoderHalf, EncoderHalf

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from ..lora.patching.resident import LoraPatcher
    from .controlnet_modules import PositionalControlNet

BESIDE_BYTES, BESIDE_SHARE = 2**30, 0.1
"""Most that LoRAs beside the weights take, and as much again what mask-aware runs keep: of main memory in bytes, and of
a GPU's memory as a share."""

TORCH, COMPILE, TENSORRT = RUNTIMES = ("torch", "compile", "tensorrt")
Call = Callable[..., Any]


@dataclass(frozen=True)
class RunningUNet:
    """A UNet, ready to be called.

    Attributes:
        patcher: Patches LoRAs into it.
        beside: Holds LoRAs beside its weights; None where the runtime does without.
        projections: Of prompts, which the halves take in place of embeddings; None where they take these.
        encoder: Called as `EncoderHalf` is.
        decoder: Called as `DecoderHalf` is.
        stacks: Its transformers, as mask-aware calls use them; None where there are none such.
    """

    patcher: LoraPatcher
    encoder: Call
    decoder: Call
    beside: BesideLoras | None = None
    projections: PromptProjections | None = None
    stacks: TokenStacks | None = None


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
            raise ValueError(f"runtime is {self.name!r}; allowed: {', '.join(RUNTIMES)}")

    def prepare(self, network: torch.nn.Module, device: torch.device) -> None:
        """Gets a network ready for its device, in place and before its weights are moved.

        Raises:
            MissingTritonError: On a GPU without the `triton` package.
        """
        if device.type != "cuda" or self.name == TENSORRT:
            return
        require_triton(f"runtime {self.name} on a GPU")
        if self.name == TORCH:
            fuse(network)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its stubs

    def traces(self, device: torch.device) -> bool:
        """Whether modules are traced there."""
        return self.name == TORCH and device.type == "cpu"

    def unet(self, unet: UNet2DConditionModel, device: torch.device, dtype: torch.dtype) -> RunningUNet:
        """A prepared UNet as this runtime calls it.

        Raises:
            EngineMismatchError: If the engines are not for this machine, or not of this checkpoint.
            TensorRTUnavailableError: Without TensorRT or a GPU.
        """
        if self.name == TENSORRT:
            from ..tensorrt.halves import EngineHalves
            from ..tensorrt.refit import unet_patcher

            halves = EngineHalves(self.engines, device)
            return RunningUNet(unet_patcher(unet, halves, self.engines, dtype), halves.encode, halves.decode)
        patcher = Patcher({UNET: unet})  # moves the weights, and so comes before any graph
        beside = BesideLoras(unet, patcher, beside_bytes(device)) if self.name == TORCH else None
        projections = PromptProjections(unet) if self.traces(device) else None  # LoRAs know the modules by then
        encoder, decoder = self._calls(EncoderHalf(unet), DecoderHalf(unet), device=device, beside=beside)
        stacks = None if beside is None else TokenStacks(unet, beside.of)
        return RunningUNet(patcher, encoder, decoder, beside, projections, stacks)

    def controlnet(self, module: PositionalControlNet, name: str, device: torch.device) -> Call:
        """A prepared ControlNet as this runtime calls it; a union's work depends on its pictures, and runs without.

        Args:
            module: The ControlNet; moved to the device, unless an engine takes its place: that one lets it go.
            name: Of its engine.
            device: Where it runs.

        Raises:
            EngineMismatchError: If the engine is not for this machine.
            TensorRTUnavailableError: Without TensorRT or a GPU.
        """
        if self.name == TENSORRT and not module.control_modes:
            from ..tensorrt.halves import EngineControlNet

            return EngineControlNet(self.engines, name, device)
        module.to(device)
        if module.control_modes:
            return module
        return self._calls(module, device=device)[0]

    def _calls(
        self, *modules: torch.nn.Module, device: torch.device, beside: BesideLoras | None = None
    ) -> tuple[Call, ...]:
        """Modules that are called one after the other, each with what the one before gave.

        On a GPU what they give is overwritten by the next call.
        """
        if self.name == COMPILE:
            return tuple(torch.compile(module) for module in modules)
        if device.type != "cuda":
            return modules
        site = CaptureSite(torch.cuda.graph_pool_handle(), torch.cuda.Stream(device))

        def variant() -> Hashable:
            return None if beside is None else beside.variant

        return tuple(CudaGraphs(module, site, number > 0, variant) for number, module in enumerate(modules))


def beside_bytes(device: torch.device) -> int:
    """What LoRAs beside the weights may take of the device's memory, and as much what mask-aware runs keep."""
    if device.type != "cuda":
        return BESIDE_BYTES
    return int(BESIDE_SHARE * torch.cuda.get_device_properties(device).total_memory)
