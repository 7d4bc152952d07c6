"""diffusers' ControlNets with tensors for arguments, from pictures that are embedded already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import ControlNetModel, ControlNetUnionModel


ARGUMENTS = 5
"""Of a UNet's arguments, the first so many are a ControlNet's too."""


class PictureEmbedder:
    """A ControlNet's embedding of its picture: what depends on the picture alone.

    Attributes:
        embedding: The network's module.
    """

    def __init__(self, embedding: torch.nn.Module, order: str) -> None:
        """Takes the embedding.

        Args:
            embedding: The network's `controlnet_cond_embedding`.
            order: Of the channels that it wants: `rgb` or `bgr`.
        """
        self.embedding, self._order = embedding, order

    def to(self, device: torch.device) -> PictureEmbedder:
        """Moves it."""
        self.embedding.to(device)
        return self

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures [B, 3, H, W], 0 to 1, as the network's first layer takes them: [B, channels, h, w]."""
        return self.embedding(pixels.flip(1) if self._order == "bgr" else pixels)


class PositionalControlNet(torch.nn.Module):
    """A `ControlNetModel` or `ControlNetUnionModel`, the latter with a control mode for each picture.

    Attributes:
        embed: The embedding of its picture, which is no part of the module.
        pools: Whether the residuals are to be averaged over the picture, once they are scaled.
        control_modes: Of a union, how many there are; else 0.
    """

    def __init__(self, network: ControlNetModel | ControlNetUnionModel) -> None:
        """Takes the picture's embedding out of the network, and its pooling, which comes after the scales.

        Args:
            network: Changed in place.
        """
        super().__init__()
        self.network = network
        self.pools = bool(network.config.global_pool_conditions)
        self.control_modes = int(network.config.get("num_control_type", 0))
        order = network.config.controlnet_conditioning_channel_order
        self.embed = PictureEmbedder(network.controlnet_cond_embedding, order)
        network.controlnet_cond_embedding = torch.nn.Identity()
        network.register_to_config(controlnet_conditioning_channel_order="rgb", global_pool_conditions=False)

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
        *embedded: torch.Tensor,
        modes: tuple[int, ...] = (),
        scale: float | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Residuals of the skips and then of the mid block, neither scaled nor pooled.

        Args:
            latents: [B, C, h, w].
            timesteps: [B].
            encoder_hidden_states: [B, tokens, width].
            text_embeds: SDXL's [B, pooled width], else empty.
            time_ids: SDXL's [B, 6], else empty.
            *embedded: A picture each, [B, channels, h, w].
            modes: Of a union: what each picture is.
            scale: Of a union: multiplies what its pictures add; None leaves that to the caller, on the residuals.
        """
        added = {"text_embeds": text_embeds, "time_ids": time_ids} if text_embeds.numel() else None
        options: dict[str, object] = {"controlnet_cond": embedded[0]}
        if self.control_modes:
            types = torch.zeros(len(latents), self.control_modes, device=latents.device, dtype=latents.dtype)
            types[:, list(modes)] = 1
            options = {
                "controlnet_cond": list(embedded),
                "control_type": types,
                "control_type_idx": list(modes),
                "conditioning_scale": [1.0 if scale is None else scale] * len(modes),
                "from_multi": scale is None,
            }
        down, mid = self.network(
            latents, timesteps, encoder_hidden_states, added_cond_kwargs=added, return_dict=False, **options
        )
        return (*down, mid)


def factors(scale: float | None, guess_mode: bool, pools: bool, count: int) -> torch.Tensor:
    """What each of `count` residuals is multiplied with, in diffusers' order of operations.

    Args:
        scale: None where the pictures were scaled.
        guess_mode: Whether shallower residuals count less.
        pools: Whether they are averaged over the picture; then guess mode does not weigh them.
        count: Of the residuals.
    """
    strength = 1.0 if scale is None else scale
    if guess_mode and not pools:
        return torch.logspace(-1, 0, count) * strength
    return torch.full((count,), strength)
