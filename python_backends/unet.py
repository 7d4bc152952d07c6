"""The UNet behind the tensors of a shard's contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .checkpoint import Checkpoint


class UNet:
    """diffusers' `UNet2DConditionModel`, called with named tensors, float32 in and out."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self._unet = checkpoint.load_unet(device, dtype)
        self._device, self._dtype = device, dtype  # diffusers' properties of these names walk over all modules
        self._checkpoint = checkpoint

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
        placed = {name: tensor.to(self._device, self._dtype) for name, tensor in tensors.items()}
        added = None
        if "TEXT_EMBEDS" in placed:
            added = {"text_embeds": placed["TEXT_EMBEDS"], "time_ids": tensors["TIME_IDS"].to(self._device)}
        with torch.inference_mode():
            return (
                self._unet(
                    placed["LATENTS"],
                    tensors["TIMESTEPS"].reshape(-1).to(self._device),
                    encoder_hidden_states=placed["ENCODER_HIDDEN_STATES"],
                    timestep_cond=placed.get("TIMESTEP_COND"),
                    added_cond_kwargs=added,
                    return_dict=False,
                )[0]
                .float()
                .cpu()
            )

    def example(self, rows: int) -> dict[str, torch.Tensor]:
        """Inputs of the default size, for warming up."""
        checkpoint = self._checkpoint
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
