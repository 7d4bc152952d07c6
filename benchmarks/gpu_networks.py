"""SDXL's networks with random weights at their real sizes, as diffusers runs them and as the shards do."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.utils import logging
from lora_workloads import SDXL

from swiftdiffusion.python_backends.networks.controlnet_modules import PositionalControlNet
from swiftdiffusion.python_backends.networks.runtimes import Runtime
from swiftdiffusion.python_backends.networks.unet_halves import join, pack
from swiftdiffusion.python_backends.networks.warm_up import tuned_convolutions

REAL = SDXL | {
    "block_out_channels": (320, 640, 1280),
    "sample_size": 128,
    "attention_head_dim": (5, 10, 20),
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "cross_attention_dim": 2048,
}
"""SDXL's UNet."""

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
ALL = Runtime()
"""With every saving."""

Call = Callable[[], Any]
logging.set_verbosity_error()


def unet(real: bool, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """Random weights on the device; of SDXL's size, or with a fifth of its width."""
    return _random(lambda: UNet2DConditionModel(**(REAL if real else SDXL)), device, dtype)


def vae(real: bool, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """Random weights on the device."""
    widths = VAE["block_out_channels"] if real else (32, 32, 64, 64)
    return _random(lambda: AutoencoderKL(**(VAE | {"block_out_channels": widths})), device, dtype)


def controlnet(of: UNet2DConditionModel, device: torch.device, dtype: torch.dtype) -> ControlNetModel:
    """With random weights where a new one has zeros."""
    network = _random(lambda: ControlNetModel.from_unet(of, load_weights_from_unet=False), device, dtype)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.02)
    return network


def inputs(of: UNet2DConditionModel, rows: int) -> tuple[torch.Tensor, ...]:
    """Arguments of `EncoderHalf`."""
    config, weight = of.config, of.conv_in.weight
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, device=weight.device, dtype=weight.dtype)

    return (
        noise(4, config.sample_size, config.sample_size),
        torch.full((rows,), 500.0, device=weight.device),
        noise(77, config.cross_attention_dim),
        noise(pooled),
        torch.full((rows, 6), 8.0 * config.sample_size, device=weight.device),
        torch.empty(0, device=weight.device),
    )


def diffusers_call(network: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> Call:
    """A step as diffusers' pipeline calls it; `network` may be compiled."""
    latents, timesteps, context, text_embeds, time_ids, _ = given
    added = {"text_embeds": text_embeds, "time_ids": time_ids}
    return lambda: network(latents, timesteps, context, added_cond_kwargs=added, return_dict=False)[0]


class Ours:
    """A shard's two halves: fused, channels-last, and CUDA graphs where there is CUDA."""

    def __init__(self, network: UNet2DConditionModel, runtime: Runtime = ALL) -> None:
        """Changes the network.

        Args:
            network: The UNet, on its device.
            runtime: How its modules compute.
        """
        self._device = network.conv_in.weight.device
        runtime.prepare(network, self._device)
        self.network, self._savings = network, runtime.savings
        self.running = runtime.unet(network, self._device, network.conv_in.weight.dtype)

    @staticmethod
    def given(given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Inputs as a shard has them: prompts on the CPU."""
        return *given[:2], given[2].float().cpu(), *given[3:]

    def eager(self, given: tuple[torch.Tensor, ...], weights: str | None = None) -> torch.Tensor:
        """A step of the fused network without graphs."""
        assert self.running.modules is not None
        encoder, decoder = self.running.modules
        context = self._prompts(given, weights)
        return decoder(context, *encoder(*given[:2], context, *given[3:]))

    def step(
        self, given: tuple[torch.Tensor, ...], residuals: Call | None = None, weights: str | None = "the same"
    ) -> torch.Tensor:
        """A step.

        Args:
            given: As the static method of this name gives it.
            residuals: Gives those of ControlNets; asked for once the encoder half is under way.
            weights: Names them, so that prompts' keys and values are those of the step before; None makes them anew.
        """
        context = self._prompts(given, weights)
        with tuned_convolutions(self._device, self._savings.tuned_convolutions):
            halfway = self.running.encoder(*given[:2], context, *given[3:])
            if residuals is not None:
                join(halfway, residuals())
            return self.running.decoder(context, *halfway)

    def _prompts(self, given: tuple[torch.Tensor, ...], weights: str | None) -> torch.Tensor:
        prompts = self.running.prompts
        assert prompts is not None
        projected = prompts(given[2], weights)
        return projected[prompts.zeros :]


class OurControlNet:
    """A ControlNet service's network on a stream of its own."""

    def __init__(self, network: ControlNetModel) -> None:
        """Changes the network."""
        device = network.conv_in.weight.device
        Runtime().prepare(network, device)
        self._call = Runtime().controlnet(PositionalControlNet(network), "", device)
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None

    def beside(self, ours: Ours, given: tuple[torch.Tensor, ...], embedded: torch.Tensor) -> torch.Tensor:
        """A step of the UNet with this ControlNet beside its encoder half."""
        mine = ours.given(given)
        if self._stream is None:
            return ours.step(mine, lambda: pack(self._call(*given[:5], embedded)))
        main = torch.cuda.current_stream()
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            packed = pack(self._call(*given[:5], embedded))

        def residuals() -> torch.Tensor:
            main.wait_stream(self._stream)
            packed.record_stream(main)
            return packed

        return ours.step(mine, residuals)

    def before(self, ours: Ours, given: tuple[torch.Tensor, ...], embedded: torch.Tensor) -> torch.Tensor:
        """The same, one after the other."""
        packed = pack(self._call(*given[:5], embedded))
        return ours.step(ours.given(given), lambda: packed)


def relative_error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """‖result − exact‖ ÷ ‖exact‖."""
    return float((result.double() - exact.double()).norm() / exact.double().norm())


def in_float32(network: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What diffusers' module gives in float32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return diffusers_call(deepcopy(network).float(), tuple(tensor.float() for tensor in given))()


def _random(make: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A network of PyTorch's initial weights, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        network = make()
    return network.to(dtype).requires_grad_(False).eval()
