"""The UNet behind the tensors of a shard's contract."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from .digests import weights_digest
from .runtimes import Runtime
from .token_costs import TokenCosts
from .unet_halves import DecoderHalf, EncoderHalf, Halfway, join
from .warm_up import WARM_UP_ROWS, capture_ahead, trace, warm_up

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from diffusers import UNet2DConditionModel

    from .checkpoint import Checkpoint
    from .runtimes import Call

    Tensors = Mapping[str, torch.Tensor]

Shapes = tuple[torch.Size, torch.Size]

META = torch.device("meta")
"""Where shapes alone are computed."""


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
        digest: `weights_digest` of what was loaded, and in what precision it multiplies.
        token_costs: What rows of mask-aware calls cost; None in the same case.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        runtime: Runtime | None = None,
        most_rows: int = WARM_UP_ROWS[-1],
        patches: bool = False,
    ) -> None:
        """Loads the weights and warms up.

        Args:
            checkpoint: Whose UNet it is.
            device: Where it computes.
            dtype: Of weights and activations.
            runtime: What evaluates it.
            most_rows: Of a call, with both halves of guidance: every number of whole requests is warmed up where graphs
                are captured.
            patches: Whether LoRAs will be patched in: what their first one would wait for is done, and W0 copied.
        """
        unet = checkpoint.load_unet(device, dtype).eval()
        runtime = runtime or Runtime()
        digest = weights_digest(unet)
        self.digest = digest + ("-fp8" if runtime.fp8 else "")
        runtime.prepare(unet, device)
        running = runtime.unet(unet, device, dtype, digest)
        self.patcher, self.beside = running.patcher, running.beside
        self.latent_channels, self.scale_factor = checkpoint.latent_channels, checkpoint.vae_scale_factor
        self._prompts, self._shares_layers = running.prompts, running.shares_layers
        self._halves: tuple[Call, Call] = running.encoder, running.decoder
        self.stacks = running.stacks
        self.token_costs = None if running.stacks is None else TokenCosts(unet)
        self._device, self._dtype = device, dtype  # diffusers' properties of these names walk over all modules
        self._traced: dict[Shapes, tuple[Call, Call]] = {}
        eager = runtime.traces(device)
        self._overwrites = self.on_gpu or runtime.captures(device)
        if patches:
            self.patcher.warm_up()  # before graphs take what memory there is
            if self.beside is not None:
                self.beside.warm_up()
        if runtime.captures(device):
            evaluate = partial(self._evaluate_ahead, checkpoint)
            capture_ahead(most_rows, evaluate, device, tunes=runtime.savings.tuned_convolutions)
        else:
            examples = [example(checkpoint, rows) for rows in WARM_UP_ROWS]
            warm_up(examples, self, partial(self._trace, unet) if eager else None, eager)

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

    def encode(
        self,
        tensors: Mapping[str, torch.Tensor],
        weights: Hashable = None,
        traced: bool = True,
        halves_alike: bool = False,
    ) -> Encoded:
        """The encoder half.

        Args:
            tensors: LATENTS [B, C, h, w], with mask and masked picture's latents for UNets that inpaint; TIMESTEPS
                [B, 1], ENCODER_HIDDEN_STATES [B, tokens, width]; for SDXL TEXT_EMBEDS [B, pooled width] and TIME_IDS
                [B, 6]; for guidance-distilled UNets TIMESTEP_COND [B, width].
                Float32, on any device; prompts best on the CPU.
            weights: Names what is in the weights and beside them: calls with the same ones and the same prompts share
                work. None shares nothing.
            traced: Whether traces may be called, which know nothing of what the stacks are told.
            halves_alike: Whether the second half of the rows has the first one's latents, timesteps and guidance.
        """
        plain = traced and (self.beside is None or self.beside.variant is None)  # nor of what is beside the weights
        halves = self._traced.get(shapes(tensors)) if plain else None
        encoder, decoder = halves or self._halves
        with torch.inference_mode():
            latents, *given = self._given(tensors, weights, leaves_zeros_out=plain and halves is None)
            differ_by_prompts = halves_alike and len(given[1]) == len(latents) and not given[2].numel()
            if plain and differ_by_prompts and self._shares_layers:
                latents = latents[: len(latents) // 2]
            return Encoded(encoder(latents, *given), given[1], decoder)

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

    def _given(
        self, tensors: Tensors, weights: Hashable = None, leaves_zeros_out: bool = False
    ) -> tuple[torch.Tensor, ...]:
        """What the encoder half takes."""
        if self._prompts is not None:
            prompts = self._prompts(tensors["ENCODER_HIDDEN_STATES"], weights)
            first = self._prompts.zeros if leaves_zeros_out else 0
            tensors = {**tensors, "ENCODER_HIDDEN_STATES": prompts[first:]}
        return arguments(tensors, self._device, self._dtype)

    def _evaluate_ahead(self, checkpoint: Checkpoint, rows: int) -> None:
        """So many rows with prompts, and where half of them have none; of a single row, where it has none."""
        tensors = example(checkpoint, rows)
        self(tensors)
        if rows % 2 == 0 and self._shares_layers and checkpoint.pooled_width is None:
            self.decode(self.encode(tensors, halves_alike=True))
        if self._prompts is not None and self._prompts.skips_zeros and checkpoint.force_zeros_for_empty_prompt:
            tensors["ENCODER_HIDDEN_STATES"][: max(1, rows // 2)] = 0
            self(tensors)

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


def example(checkpoint: Checkpoint, rows: int, channels: int | None = None) -> dict[str, torch.Tensor]:
    """Inputs of the default size, of which LATENTS has so many channels; None for what the UNet takes."""
    height, width = (side // checkpoint.vae_scale_factor for side in checkpoint.default_size)
    tensors = {
        "LATENTS": torch.zeros(rows, channels or checkpoint.unet_channels, height, width),
        "TIMESTEPS": torch.zeros(rows, 1),
        "ENCODER_HIDDEN_STATES": torch.ones(rows, *checkpoint.text_embedding_shape),
    }
    if checkpoint.pooled_width is not None:
        tensors |= {"TEXT_EMBEDS": torch.zeros(rows, checkpoint.pooled_width), "TIME_IDS": torch.zeros(rows, 6)}
    if checkpoint.guidance_embedding_width is not None:
        tensors["TIMESTEP_COND"] = torch.zeros(rows, checkpoint.guidance_embedding_width)
    return tensors
