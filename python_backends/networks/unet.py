"""The UNet behind the tensors of a shard's contract."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from .digests import weights_digest
from .runtimes import Runtime
from .token_costs import TokenCosts
from .unet_halves import DecoderHalf, EncoderHalf, Halfway, join

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from diffusers import UNet2DConditionModel

    from .checkpoint import Checkpoint
    from .runtimes import Call

    Tensors = Mapping[str, torch.Tensor]

Shapes = tuple[torch.Size, torch.Size]

WARM_UP_ROWS = (1, 2)
"""Rows of the calls that a single request makes: one half of its guidance, or both."""

META = torch.device("meta")
"""Where shapes alone are computed."""

SLOW_S = 1.0
"""An evaluation that takes longer is not traced, nor repeated before it is wanted."""


@dataclass(frozen=True)
class Encoded:
    """What goes from one half of a call to the other.

    Attributes:
        halfway: What the encoder half gave.
        context: What its cross-attention takes, where it is: sent, or made, once.
        decoder: The half that goes on.
    """

    halfway: Halfway
    context: torch.Tensor
    decoder: Call


class UNet:
    """diffusers' `UNet2DConditionModel` in two halves, called with named tensors, float32 in and out.

    On the CPU, the calls that a single request makes at the default size run as traced graphs: the same operators on
    the same parameters, bit for bit, without the Python between them. Every other call runs the modules themselves. On
    a GPU every call is CUDA graphs over fused operators, of mask-aware calls one for every stack of transformers and
    one for what lies between two. Parameters are not frozen into graphs; patching them in place
    takes effect.

    Attributes:
        patcher: Patches LoRAs into the weights.
        beside: Holds LoRAs beside them; None where the runtime does without.
        latent_channels: Of what it predicts, which are the first of what it takes.
        scale_factor: Pixels per latent cell.
        stacks: Its transformers, as mask-aware calls use them; None where the runtime does without.
        digest: `weights_digest` of what was loaded.
        token_costs: What rows of mask-aware calls cost; None in the same case.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, runtime: Runtime | None = None
    ) -> None:
        """Loads the weights and warms up."""
        unet = checkpoint.load_unet(device, dtype).eval()
        self.digest = weights_digest(unet)
        runtime = runtime or Runtime()
        runtime.prepare(unet, device)
        running = runtime.unet(unet, device, dtype)
        self.patcher, self.beside = running.patcher, running.beside
        self.latent_channels, self.scale_factor = checkpoint.latent_channels, checkpoint.vae_scale_factor
        self._prompts = running.prompts
        self._halves: tuple[Call, Call] = running.encoder, running.decoder
        self.stacks = running.stacks
        self.token_costs = None if running.stacks is None else TokenCosts(unet)
        self._device, self._dtype = device, dtype  # diffusers' properties of these names walk over all modules
        self._traced: dict[Shapes, tuple[Call, Call]] = {}
        eager = runtime.traces(device)
        self._overwrites = self.on_gpu or runtime.captures(device)
        warm_up(checkpoint, self, partial(self._trace, unet) if eager else None, eager)

    @property
    def on_gpu(self) -> bool:
        """Where it computes."""
        return self._device.type == "cuda"

    def use_device(self) -> None:
        """Makes its GPU the current one of a thread that is about to call it."""
        if self.on_gpu:
            torch.cuda.set_device(self._device)

    def __call__(self, tensors: Mapping[str, torch.Tensor], weights: Hashable = None) -> torch.Tensor:
        """Noise predictions: `decode` of `encode`, without ControlNets."""
        return self.decode(self.encode(tensors, weights))

    def encode(self, tensors: Mapping[str, torch.Tensor], weights: Hashable = None, traced: bool = True) -> Encoded:
        """The encoder half.

        Args:
            tensors: LATENTS [B, C, h, w], with mask and masked picture's latents for UNets that inpaint; TIMESTEPS
                [B, 1], ENCODER_HIDDEN_STATES [B, tokens, width]; for SDXL TEXT_EMBEDS [B, pooled width] and TIME_IDS
                [B, 6]; for guidance-distilled UNets TIMESTEP_COND [B, width].
                Float32, on any device; prompts best on the CPU.
            weights: Names what is in the weights and beside them: calls with the same ones and the same prompts share
                work. None shares nothing.
            traced: Whether traces may be called, which know nothing of what the stacks are told.
        """
        encoder, decoder = self._halves
        if traced and (self.beside is None or self.beside.variant is None):  # nor of what is beside the weights
            encoder, decoder = self._traced.get(shapes(tensors), self._halves)
        with torch.inference_mode():
            given = self._given(tensors, weights)
            return Encoded(encoder(*given), given[2], decoder)

    def decode(self, encoded: Encoded, residuals: torch.Tensor | None = None) -> torch.Tensor:
        """The decoder half.

        Args:
            encoded: What `encode` gave last; changed in place where there are residuals.
            residuals: Of ControlNets, packed as `unet_halves.join` wants them; None for none.

        Returns:
            Noise predictions [B, C, h, w], float32, where the UNet is.
        """
        with torch.inference_mode():
            if residuals is not None:
                join(encoded.halfway, residuals.to(self._device, self._dtype))
            prediction = encoded.decoder(encoded.context, *encoded.halfway)
            return prediction.to(torch.float32, copy=self._overwrites)  # where it lies, the next call's will

    def _given(self, tensors: Tensors, weights: Hashable = None) -> tuple[torch.Tensor, ...]:
        """What the encoder half takes."""
        if self._prompts is not None:
            tensors = {**tensors, "ENCODER_HIDDEN_STATES": self._prompts(tensors["ENCODER_HIDDEN_STATES"], weights)}
        return arguments(tensors, self._device, self._dtype)

    def _trace(self, unet: UNet2DConditionModel, examples: Sequence[Tensors]) -> None:
        encoder, decoder = EncoderHalf(unet), DecoderHalf(unet)
        calls: list[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]] = []
        with torch.no_grad():
            for inputs in map(self._given, examples):
                calls += [(encoder, inputs), (decoder, (inputs[2], *encoder(*inputs)))]
        traced = trace(unet, calls)
        self._traced = dict(zip(map(shapes, examples), zip(traced[::2], traced[1::2], strict=True), strict=True))


def arguments(
    tensors: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """The arguments of `EncoderHalf.forward`; absent optional ones are empty."""
    none = torch.empty(0)
    return (
        tensors["LATENTS"].to(device, dtype),
        tensors["TIMESTEPS"].reshape(-1).to(device),
        tensors["ENCODER_HIDDEN_STATES"].to(device, dtype),
        tensors.get("TEXT_EMBEDS", none).to(device, dtype),
        tensors.get("TIME_IDS", none).to(device),
        tensors.get("TIMESTEP_COND", none).to(device, dtype),
    )


def shapes(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    """Of latents and prompt embeddings: what differs between calls of one network."""
    return tensors["LATENTS"].shape, tensors["ENCODER_HIDDEN_STATES"].shape


def empty_arguments(checkpoint: Checkpoint, rows: int, channels: int | None = None) -> tuple[torch.Tensor, ...]:
    """The arguments of `EncoderHalf.forward` at the default size, without values: on the meta device, float32.

    Args:
        checkpoint: Whose inputs they are.
        rows: Of the batch.
        channels: As of `example`.
    """
    return arguments(example(checkpoint, rows, channels), META, torch.float32)


def trace(network: torch.nn.Module, calls: Sequence[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]) -> list[Call]:
    """Graphs of modules that share a network's; parameters that change in place take effect.

    All at once: torch converts the modules, which takes longer than the graphs, each time that it is asked.

    Args:
        network: What they share.
        calls: The modules, and arguments of the shapes that their graphs are for.
    """
    holder = torch.nn.Module()
    holder.network = network
    arguments: dict[str, tuple[torch.Tensor, ...]] = {}
    for number, (module, given) in enumerate(calls):
        setattr(holder, f"call{number}", module.forward)
        arguments[f"call{number}"] = given
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values taken for constants: they depend on the shape alone, which is fixed
        graphs = torch.jit.trace_module(holder, arguments, check_trace=False)
    return [getattr(graphs, name) for name in arguments]


def warm_up(
    checkpoint: Checkpoint,
    evaluate: Callable[[Tensors], object],
    trace: Callable[[Sequence[Tensors]], None] | None,
    is_eager: bool,
    channels: int | None = None,
) -> None:
    """Evaluates with each of WARM_UP_ROWS, traced where that helps.

    Where one eager evaluation takes long, a trace saves nothing that counts, and it is the only one: a process of which
    a step takes ten seconds need not take a minute more to be ready.

    Args:
        checkpoint: Whose inputs it takes.
        evaluate: By the trace of its `shapes`, if there is one.
        trace: Makes those of several examples; None for what is not traced.
        is_eager: Whether the first call of a shape costs no more than others: nothing is compiled or captured.
        channels: As of `example`.
    """
    examples: list[Tensors] = []
    for rows in WARM_UP_ROWS:
        given = example(checkpoint, rows, channels)
        if is_eager:
            start = time.thread_time()  # not of the clock: others may have the core
            evaluate(given)
            if time.thread_time() - start > SLOW_S:
                break
        examples.append(given)
    if trace is not None and examples:
        trace(examples)
    for tensors in examples:
        for _ in range(3):  # the first calls of a graph optimise it
            evaluate(tensors)


def example(checkpoint: Checkpoint, rows: int, channels: int | None = None) -> dict[str, torch.Tensor]:
    """Inputs of the default size, of which LATENTS has so many channels; None for what the UNet takes."""
    height, width = (side // checkpoint.vae_scale_factor for side in checkpoint.default_size)
    tensors = {
        "LATENTS": torch.zeros(rows, channels or checkpoint.unet_channels, height, width),
        "TIMESTEPS": torch.zeros(rows, 1),
        "ENCODER_HIDDEN_STATES": torch.zeros(rows, *checkpoint.text_embedding_shape),
    }
    if checkpoint.pooled_width is not None:
        tensors |= {"TEXT_EMBEDS": torch.zeros(rows, checkpoint.pooled_width), "TIME_IDS": torch.zeros(rows, 6)}
    if checkpoint.guidance_embedding_width is not None:
        tensors["TIMESTEP_COND"] = torch.zeros(rows, checkpoint.guidance_embedding_width)
    return tensors
