"""What evaluates a UNet or a ControlNet.

| runtime | on a GPU | on the CPU |
|---|---|---|
| `torch` | fused operators, channels-last, CUDA graphs | traced graphs, in float32; fused attention |
| `compile` | torch.compile of diffusers' own modules, channels-last | the same, contiguous |
| `tensorrt`, `tensorrt-rtx` | engines that `build-engines` built | none |
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ...kernels.triton_language import require_triton
from ..lora.files.modules import UNET
from ..lora.patching.beside import BesideLoras
from ..lora.patching.patcher import Patcher
from ..tensorrt.flavours import FLAVOURS
from ..tensorrt.tensor_names import VAE_DECODER
from .cuda_graphs import CaptureSite, CudaGraphs, CudaRecorder
from .digests import weights_digest
from .fp8 import Fp8Copies, require_fp8
from .fused_attention import fuse_attentions, join_projections
from .fused_modules import fuse
from .latent_decoding import decode_latents, pictures
from .memory_shares import beside_bytes, graph_bytes, prompt_bytes, scratch_bytes
from .prompt_projections import KeptPrompts, PromptProjections
from .savings import ALL, Savings
from .scratch import Scratch
from .stack_graphs import StackGraphs
from .stack_modules import StackModules
from .time_projections import TimeProjections
from .token_stacks import TokenStacks
from .unet_halves import DecoderHalf, EncoderHalf, shares_layers

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    from ..tensorrt.flavours import Flavour
    from ..tensorrt.networks import EngineTextEncoder
    from .controlnet_modules import PositionalControlNet
    from .cuda_graphs import Recorder

RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder}
"""By type of device: what captures graphs there."""

TORCH, COMPILE = "torch", "compile"
RUNTIMES = (TORCH, COMPILE, *FLAVOURS)
Call = Callable[..., Any]


@dataclass(frozen=True)
class RunningUNet:
    """A UNet, ready to be called.

    Attributes:
        patcher: Patches LoRAs into it.
        beside: Holds LoRAs beside its weights; None where the runtime does without.
        prompts: What the halves take in place of embeddings; None where they take these.
        encoder: Called as `EncoderHalf` is.
        decoder: Called as `DecoderHalf` is.
        stacks: Its transformers, as mask-aware calls use them; None where there are none such.
        modules: What encoder and decoder compute, call by call; None of engines.
        shares_layers: Whether the encoder takes latents of fewer rows, as `EncoderHalf` says.
    """

    patcher: Patcher
    encoder: Call
    decoder: Call
    beside: BesideLoras | None = None
    prompts: KeptPrompts | None = None
    stacks: TokenStacks | None = None
    modules: tuple[EncoderHalf, DecoderHalf] | None = None
    shares_layers: bool = False


@dataclass(frozen=True)
class Runtime:
    """A choice.

    Attributes:
        name: One of RUNTIMES.
        engines: Directory of TensorRT engines.
        savings: Of the fused modules.
        fp8: Whether linear layers of a UNet's transformers multiply 8-bit floats; of runtime `torch`.
    """

    name: str = TORCH
    engines: Path = Path()
    savings: Savings = ALL
    fp8: bool = False

    def __post_init__(self) -> None:
        if self.name not in RUNTIMES:
            raise ValueError(f"runtime is {self.name!r}; allowed: {', '.join(RUNTIMES)}")
        if self.fp8 and self.name != TORCH:
            raise ValueError(f"fp8 is on; wanted with it: runtime torch, not {self.name}")

    @property
    def flavour(self) -> Flavour | None:
        """What runs engines; None of a runtime that has none."""
        return FLAVOURS.get(self.name)

    def prepare(self, network: torch.nn.Module, device: torch.device) -> None:
        """Gets a network ready for its device, in place and before its weights are moved.

        Raises:
            MissingTritonError: On a GPU without the `triton` package.
            Fp8UnavailableError: On a GPU without 8-bit products where they are wanted.
        """
        if self.flavour is not None:
            return
        if self.fp8:
            require_fp8(device)
        if device.type != "cuda":
            if self.name == TORCH and self.savings.divisions:
                fuse_attentions(network)
            return
        require_triton(f"runtime {self.name} on a GPU")
        if self.name == TORCH:
            fuse(network, self.savings)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its stubs

    def traces(self, device: torch.device) -> bool:
        """Whether modules are traced there."""
        return self.name == TORCH and not self.captures(device) and not self.fp8

    def captures(self, device: torch.device) -> bool:
        """Whether each set of shapes is got ready there: what its calls give, its next ones overwrite."""
        return self.flavour is not None or (self.name == TORCH and device.type in RECORDERS)

    def unet(
        self, unet: UNet2DConditionModel, device: torch.device, dtype: torch.dtype, digest: str | None = None
    ) -> RunningUNet:
        """A prepared UNet as this runtime calls it.

        Args:
            unet: On its device.
            device: Where it computes.
            dtype: Of weights and activations.
            digest: `weights_digest` of it, where that is known.

        Raises:
            EngineMismatchError: If the engines are not for this machine, or not of this checkpoint.
            TensorRTUnavailableError: Without TensorRT or a GPU.
        """
        if self.flavour is not None:
            from ..tensorrt.networks import EngineHalves

            digest = digest or weights_digest(unet)
            patcher = Patcher({UNET: unet}, in_place=True)  # moves the weights, which the engines read where they lie
            engines = EngineHalves(self.engines, device, self.flavour, unet, digest)
            patcher.fix(UNET, engines.constants)
            return RunningUNet(patcher, engines.encode, engines.decode, prompts=_prompts(device, dtype))
        captures = self.captures(device)
        in_place = captures or self.fp8 or None
        patcher = Patcher({UNET: unet}, in_place=in_place)  # moves the weights, and so comes before any graph
        copies = Fp8Copies(unet, patcher, UNET) if self.fp8 else None
        if self.savings.qkv:
            join_projections(copies or patcher, UNET, unet)
        times = TimeProjections(unet, patcher, UNET) if self.savings.times else None
        halves = EncoderHalf(unet, times), DecoderHalf(unet)
        if self.name == COMPILE:
            encoder, decoder = map(torch.compile, halves)
            return RunningUNet(patcher, encoder, decoder, prompts=_prompts(device, dtype))
        beside = BesideLoras(unet, patcher, beside_bytes(device))
        projections = PromptProjections(
            unet, prompt_bytes(device), in_place=captures, skips_zeros=captures and self.savings.zero_prompts
        )
        if not captures:
            stacks = TokenStacks(unet, partial(StackModules, beside=beside.of))
            return RunningUNet(patcher, *halves, beside, projections, stacks, halves)
        site, scratch = _site(device), Scratch(device, scratch_bytes(device))
        calls = partial(StackGraphs, site=_site(device), scratch=scratch, projections=projections, beside=beside)
        stacks = TokenStacks(unet, calls, site.outside)

        def variant() -> Hashable:
            return beside.variant, stacks.are_told

        room = graph_bytes(device)
        encoder = CudaGraphs(halves[0], site, slice(2, 3), variant, most_bytes=room)  # projections lie where they lay
        decoder = CudaGraphs(halves[1], site, slice(None), variant, most_bytes=room)
        shares = self.savings.shared_layers and shares_layers(unet)
        return RunningUNet(patcher, encoder, decoder, beside, projections, stacks, halves, shares)

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
        if self.flavour is not None and not module.control_modes:
            from ..tensorrt.networks import EngineControlNet

            return EngineControlNet(self.engines, name, device, self.flavour, weights_digest(module.network))
        module.to(device)
        if module.control_modes:
            return module
        if self.name == COMPILE:
            return cast("Call", torch.compile(module))
        return CudaGraphs(module, _site(device), most_bytes=graph_bytes(device)) if self.captures(device) else module

    def text_encoder(
        self, name: str, encoder: CLIPTextModel, patcher: Patcher, device: torch.device
    ) -> EngineTextEncoder | None:
        """What computes a text encoder's usual layers; None where its modules do.

        Args:
            name: Of the component.
            encoder: As it was loaded; on its device.
            patcher: Of its weights.
            device: Where it runs.

        Raises:
            EngineMismatchError: If the engine is not for this machine, or not of this checkpoint.
            TensorRTUnavailableError: Without TensorRT or a GPU.
        """
        if self.flavour is None:
            return None
        from ..tensorrt.networks import Engine, EngineTextEncoder, parameters

        digest, vocabulary = weights_digest(encoder), encoder.get_input_embeddings().num_embeddings
        engine = Engine.load(self.engines, name, device, self.flavour, parameters(encoder), digest)
        patcher.fix(name, engine.constants)
        return EngineTextEncoder(engine, vocabulary)

    def decoder(self, vae: AutoencoderKL, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """What makes pictures of latents, as `latent_decoding.decode_latents`.

        Args:
            vae: On the CPU; moved to the device, unless an engine takes its place.
            device: Where it runs.

        Raises:
            EngineMismatchError: If the engine is not for this machine, or not of this checkpoint.
            TensorRTUnavailableError: Without TensorRT or a GPU.
        """
        if self.flavour is None:
            self.prepare(vae, device)
            return partial(decode_latents, vae.to(device))
        from ..tensorrt.networks import Engine

        engine = Engine.load(self.engines, VAE_DECODER, device, self.flavour, digest=weights_digest(vae))
        return partial(pictures, lambda row: engine.run({"latents": row})["image"])


def _prompts(device: torch.device, dtype: torch.dtype) -> KeptPrompts | None:
    """Of a runtime that makes nothing of them: what lies on the CPU need not be sent in every step."""
    return None if device.type == "cpu" else KeptPrompts(device, dtype, prompt_bytes(device))


def _site(device: torch.device) -> CaptureSite:
    return CaptureSite(RECORDERS[device.type](device))
