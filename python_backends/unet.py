"""The UNet behind the tensors of a shard's contract."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from .lora.modules import UNET
from .lora.patcher import Patcher

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .checkpoint import Checkpoint

WARM_UP_ROWS = (1, 2)
"""Rows of the calls that a single request makes: one half of its guidance, or both."""


class UNet:
    """diffusers' `UNet2DConditionModel`, called with named tensors, float32 in and out.

    On the CPU, the calls that a single request makes at the default size run as traced graphs: the same operators on
    the same parameters, bit for bit, without the Python between them. Every other call runs the module itself.
    Parameters are not frozen into the graphs; patching them in place takes effect.

    Attributes:
        patcher: Patches LoRAs into the weights.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        """Loads the weights, traces where that helps, and evaluates once with each of WARM_UP_ROWS."""
        self._module = _PositionalUNet(checkpoint, device, dtype).eval()
        self.patcher = Patcher({UNET: self._module.unet})  # moves the weights, and so comes before tracing
        self._device, self._dtype = device, dtype  # diffusers' properties of these names walk over all modules
        self._traced: dict[torch.Size, torch.nn.Module] = {}
        for rows in WARM_UP_ROWS:
            example = _example(checkpoint, rows)
            if device.type == "cpu":
                self._traced[example["LATENTS"].shape] = _trace(self._module, self._place(example))
            for _ in range(3):  # the first calls of a graph optimise it
                self(example)

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Noise predictions.

        Args:
            tensors: LATENTS [B, C, h, w], TIMESTEPS [B, 1], ENCODER_HIDDEN_STATES [B, tokens, width]; for SDXL
                TEXT_EMBEDS [B, pooled width] and TIME_IDS [B, 6]; for guidance-distilled UNets
                TIMESTEP_COND [B, width].
                Float32, on any device.

        Returns:
            [B, C, h, w] float32 on the CPU, where the denoisers keep latents and samplers.
        """
        module = self._traced.get(tensors["LATENTS"].shape, self._module)
        with torch.inference_mode():
            return module(*self._place(tensors)).float().cpu()

    def _place(self, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The arguments of `_PositionalUNet.forward` on its device; absent optional ones are empty."""
        none = torch.empty(0)
        return (
            tensors["LATENTS"].to(self._device, self._dtype),
            tensors["TIMESTEPS"].reshape(-1).to(self._device),
            tensors["ENCODER_HIDDEN_STATES"].to(self._device, self._dtype),
            tensors.get("TEXT_EMBEDS", none).to(self._device, self._dtype),
            tensors.get("TIME_IDS", none).to(self._device),
            tensors.get("TIMESTEP_COND", none).to(self._device, self._dtype),
        )


class _PositionalUNet(torch.nn.Module):
    """The UNet with tensors for arguments, as tracing wants them."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.unet = checkpoint.load_unet(device, dtype)

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
        timestep_cond: torch.Tensor,
    ) -> torch.Tensor:
        added = {"text_embeds": text_embeds, "time_ids": time_ids} if text_embeds.numel() else None
        return self.unet(
            latents,
            timesteps,
            encoder_hidden_states=encoder_hidden_states,
            timestep_cond=timestep_cond if timestep_cond.numel() else None,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]


def _trace(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> torch.nn.Module:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values taken for constants: they depend on the shape alone, which is fixed
        return torch.jit.trace(module, arguments, check_trace=False)


def _example(checkpoint: Checkpoint, rows: int) -> dict[str, torch.Tensor]:
    """Inputs of the default size."""
    height, width = (side // checkpoint.vae_scale_factor for side in checkpoint.default_size)
    tensors = {
        "LATENTS": torch.zeros(rows, checkpoint.latent_channels, height, width),
        "TIMESTEPS": torch.zeros(rows, 1),
        "ENCODER_HIDDEN_STATES": torch.zeros(rows, *checkpoint.text_embedding_shape),
    }
    if checkpoint.pooled_width is not None:
        tensors |= {"TEXT_EMBEDS": torch.zeros(rows, checkpoint.pooled_width), "TIME_IDS": torch.zeros(rows, 6)}
    if checkpoint.guidance_embedding_width is not None:
        tensors["TIMESTEP_COND"] = torch.zeros(rows, checkpoint.guidance_embedding_width)
    return tensors
