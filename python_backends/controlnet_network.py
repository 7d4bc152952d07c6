"""A ControlNet behind the tensors of its service's contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from cachetools import LRUCache
from diffusers import ControlNetModel

from .checkpoint import weights_variant
from .unet import WARM_UP_ROWS, arguments, example, trace
from .unet_halves import pack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from .checkpoint import Checkpoint

EMBEDDING_BYTES = 2**28
"""Embedded pictures that are kept, in bytes."""


@dataclass(frozen=True)
class Control:
    """What one row of a call asks for.

    Attributes:
        image: Key of the picture.
        scale: Multiplies the residuals.
        guess_mode: Whether shallower residuals count less, as in diffusers.
    """

    image: str
    scale: float
    guess_mode: bool


class ControlNet:
    """diffusers' `ControlNetModel`; what depends on the picture alone is computed once per picture.

    On the CPU the calls that a single request makes at the default size run as traced graphs, as in `unet.UNet`.
    """

    def __init__(
        self,
        directory: Path,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        get_image: Callable[[str], np.ndarray],
    ) -> None:
        """Loads the weights, traces where that helps, and evaluates once with each of WARM_UP_ROWS.

        Args:
            directory: A diffusers ControlNet.
            checkpoint: Whose latents and embeddings it takes.
            device: Where it computes.
            dtype: Of weights and activations.
            get_image: Picture [H, W, 3] uint8 of a key, of the latents' size in pixels; may raise a RequestError.
        """
        network = ControlNetModel.from_pretrained(
            directory, dtype=dtype, variant=weights_variant(directory), use_safetensors=True
        )
        if network.config.global_pool_conditions:
            raise ValueError(f"{directory} pools its residuals (global_pool_conditions), which is not served")
        self._module = _PositionalControlNet(network.to(device).requires_grad_(False).eval())
        self._embed = self._module.take_embedding()
        self._get_image = get_image
        self._device, self._dtype = device, dtype
        self._embedded: LRUCache[str, torch.Tensor] = LRUCache(EMBEDDING_BYTES, getsizeof=lambda tensor: tensor.nbytes)
        self._traced: dict[torch.Size, torch.nn.Module] = {}
        for rows in WARM_UP_ROWS:
            tensors = example(checkpoint, rows)
            channels = self._module.network.conv_in.out_channels
            embedded = torch.zeros(rows, channels, *tensors["LATENTS"].shape[-2:], device=device, dtype=dtype)
            inputs = (*arguments(tensors, device, dtype)[:5], embedded)
            if device.type == "cpu":
                self._traced[tensors["LATENTS"].shape] = trace(self._module, inputs)
            for _ in range(3):  # the first calls of a graph optimise it
                self._evaluate(tensors, embedded)

    def __call__(self, tensors: Mapping[str, torch.Tensor], controls: Sequence[Control]) -> torch.Tensor:
        """Residuals of the skips and the mid block, scaled.

        Args:
            tensors: LATENTS [B, C, h, w], TIMESTEPS [B, 1], ENCODER_HIDDEN_STATES [B, tokens, width]; for SDXL
                TEXT_EMBEDS [B, pooled width] and TIME_IDS [B, 6]. Float32.
            controls: One per row.

        Returns:
            [B, sum of C·h·w], packed as by `unet_halves.pack`; float32 on the CPU.
        """
        embedded = [self._embedding(control.image) for control in controls]
        with torch.inference_mode():
            residuals = self._evaluate(tensors, torch.cat(embedded))
            factors = [_factors(control, len(residuals)) for control in controls]
            for index, residual in enumerate(residuals):
                scales = torch.stack([factor[index] for factor in factors]).to(residual.device)
                residuals[index] = (residual.float() * scales[:, None, None, None]).to(residual.dtype)
            return pack(residuals).float().cpu()

    def _evaluate(self, tensors: Mapping[str, torch.Tensor], embedded: torch.Tensor) -> list[torch.Tensor]:
        module = self._traced.get(tensors["LATENTS"].shape, self._module)
        with torch.inference_mode():
            return list(module(*arguments(tensors, self._device, self._dtype)[:5], embedded))

    def _embedding(self, key: str) -> torch.Tensor:
        """[1, channels, h, w]: the picture as the first layer takes it."""
        known = self._embedded.get(key)
        if known is None:
            pixels = torch.from_numpy(self._get_image(key)).permute(2, 0, 1)[None].float() / 255
            with torch.inference_mode():
                known = self._embed(pixels.to(self._device, self._dtype))
            if known.nbytes <= EMBEDDING_BYTES:
                self._embedded[key] = known
        return known


class _PositionalControlNet(torch.nn.Module):
    """The ControlNet with tensors for arguments, as tracing wants them, from an embedded picture."""

    def __init__(self, network: ControlNetModel) -> None:
        super().__init__()
        self.network = network

    def take_embedding(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What embeds a picture; the network then takes embedded ones."""
        embedding = self.network.controlnet_cond_embedding
        order = self.network.config.controlnet_conditioning_channel_order
        self.network.controlnet_cond_embedding = torch.nn.Identity()
        self.network.register_to_config(controlnet_conditioning_channel_order="rgb")
        return (lambda pixels: embedding(pixels.flip(1))) if order == "bgr" else embedding

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
        embedded: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        added = {"text_embeds": text_embeds, "time_ids": time_ids} if text_embeds.numel() else None
        down, mid = self.network(
            latents,
            timesteps,
            encoder_hidden_states=encoder_hidden_states,
            controlnet_cond=embedded,
            added_cond_kwargs=added,
            return_dict=False,
        )
        return (*down, mid)


def _factors(control: Control, count: int) -> torch.Tensor:
    """What each residual is multiplied with, in diffusers' order of operations."""
    if control.guess_mode:
        return torch.logspace(-1, 0, count) * control.scale
    return torch.full((count,), control.scale)
