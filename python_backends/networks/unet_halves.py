"""A UNet cut where ControlNets join it: an encoder half that needs no residuals, and a decoder half that does."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from .fused_modules import FusedResnetBlock2D
from .fused_transformer import NormedTransformer2DModel, repeated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diffusers import UNet2DConditionModel

Halfway = tuple[torch.Tensor, ...]
"""What goes from one half to the other: mid block output [B, C, h, w] (without a mid block its input), time embedding
[B, E] or what is made of it, then the skips: what `conv_in` and the layers of the down blocks give, in their order."""


UNUSED = ("encoder_hid_proj", "class_embedding", "time_embed_act", "position_net")
"""Parts of diffusers' class that no UNet of SD 1.5 or SDXL has; the halves do without them."""


class EncoderHalf(torch.nn.Module):
    """Embeddings, `conv_in`, down blocks and mid block of diffusers' `UNet2DConditionModel.forward`, in its order."""

    def __init__(self, unet: UNet2DConditionModel, times: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        """Shares the UNet's modules.

        Args:
            unet: The module.
            times: Makes what its residual blocks take in place of the time embedding; None for that itself.

        Raises:
            ValueError: If it has parts that neither SD 1.5 nor SDXL has.
        """
        super().__init__()
        unknown = [name for name in UNUSED if getattr(unet, name, None) is not None]
        if unknown or unet.config.center_input_sample:
            raise ValueError(f"not a UNet of SD 1.5 or SDXL: it has {', '.join(unknown) or 'centred inputs'}")
        self.unet, self._times = unet, times

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
        timestep_cond: torch.Tensor,
    ) -> Halfway:
        """What `DecoderHalf` needs.

        Args:
            latents: [B, C, h, w], scaled for the timestep; where `shares_layers`, of fewer rows if the same ones
                follow.
            timesteps: [B].
            encoder_hidden_states: [B, tokens, width].
            text_embeds: SDXL's [B, pooled width], else empty.
            time_ids: SDXL's [B, 6], else empty.
            timestep_cond: [B, width] of a guidance-distilled UNet, else empty.
        """
        unet = self.unet
        added = {"text_embeds": text_embeds, "time_ids": time_ids} if text_embeds.numel() else None
        every = latents[:1].expand(timesteps.shape[0], -1, -1, -1)
        time = unet.get_time_embed(sample=every, timestep=timesteps)
        embedding = unet.time_embedding(time, timestep_cond if timestep_cond.numel() else None)
        more = unet.get_aug_embed(emb=embedding, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added)
        if more is not None:
            embedding = embedding + more
        if self._times is not None:
            embedding = self._times(embedding)
        sample = unet.conv_in(latents)
        skips: tuple[torch.Tensor, ...] = (repeated(sample, embedding.shape[0]),)
        for block in unet.down_blocks:
            sample, outputs = block(hidden_states=sample, temb=embedding, **_context(block, encoder_hidden_states))
            skips += outputs
        if unet.mid_block is not None:
            sample = unet.mid_block(sample, embedding, **_context(unet.mid_block, encoder_hidden_states))
        else:
            sample = sample.clone()  # else `join` would add to the last skip twice
        return sample, embedding, *skips


class DecoderHalf(torch.nn.Module):
    """Up blocks and `conv_out` of diffusers' `UNet2DConditionModel.forward`, in its order."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Shares the UNet's modules."""
        super().__init__()
        self.unet = unet

    def forward(self, encoder_hidden_states: torch.Tensor, *halfway: torch.Tensor) -> torch.Tensor:
        """The noise prediction [B, C, h, w].

        Args:
            encoder_hidden_states: [B, tokens, width].
            *halfway: What `EncoderHalf` gave, with residuals added or without.
        """
        unet = self.unet
        sample, embedding, *skips = halfway
        uneven = any(side % 2**unet.num_upsamplers for side in skips[0].shape[-2:])  # else every upsampling doubles
        for block in unet.up_blocks:
            own, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            sample = block(
                hidden_states=sample,
                temb=embedding,
                res_hidden_states_tuple=tuple(own),
                upsample_size=skips[-1].shape[2:] if uneven and skips else None,
                **_context(block, encoder_hidden_states),
            )
        if unet.conv_norm_out:
            sample = unet.conv_act(unet.conv_norm_out(sample))
        return unet.conv_out(sample)


def shares_layers(unet: UNet2DConditionModel) -> bool:
    """Whether latents of rows that differ by their prompts alone may be given once: the first layers know of that."""
    block = unet.down_blocks[0]
    first = type(block.resnets[0]), type(getattr(block, "attentions", [None])[0])
    return first == (FusedResnetBlock2D, NormedTransformer2DModel)


def residual_size(halfway: Halfway) -> int:
    """Values of a row of residuals for what `EncoderHalf` gave: the sum of C·h·w over skips and mid."""
    mid, _, *skips = halfway
    return sum(tensor[0].numel() for tensor in (*skips, mid))


def join(halfway: Halfway, residuals: torch.Tensor) -> None:
    """Adds ControlNet residuals to skips and mid block output, in place: graphs are captured over these tensors.

    Args:
        halfway: What `EncoderHalf` gave.
        residuals: [B, sum of C·h·w over skips, then mid]: `pack`ed; rows of zeros change nothing.
    """
    mid, _, *skips = halfway
    targets = (*skips, mid)
    for target, residual in zip(targets, unpack(residuals, [tensor.shape[1:] for tensor in targets]), strict=True):
        target.add_(residual)


def pack(residuals: Sequence[torch.Tensor], scales: torch.Tensor | None = None) -> torch.Tensor:
    """Residuals of the skips and then of the mid block as one tensor, in one pass from whatever layout they have.

    Args:
        residuals: [B, C, h, w] each.
        scales: float32 [B, residuals], what each is multiplied by in float32, and rounded once; on the CPU. None for 1.

    Returns:
        [B, sum of C·h·w].
    """
    rows, device = len(residuals[0]), residuals[0].device
    factors = torch.ones(rows, len(residuals)) if scales is None else scales
    unscaled, columns = (factors == 1).all(0).tolist(), factors.to(device)[:, :, None, None, None].unbind(1)
    packed = residuals[0].new_empty(rows, sum(residual[0].numel() for residual in residuals))
    places = unpack(packed, [residual.shape[1:] for residual in residuals])
    for residual, place, scale, is_unscaled in zip(residuals, places, columns, unscaled, strict=True):
        if is_unscaled:
            place.copy_(residual)
        else:
            torch.mul(residual, scale, out=place)
    return packed


def unpack(packed: torch.Tensor, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """Views of what `pack` packed; `shapes` are without the batch dimension."""
    ends = accumulate((torch.Size(shape).numel() for shape in shapes), initial=0)
    return [packed[:, a:b].unflatten(1, shape) for (a, b), shape in zip(pairwise(ends), shapes, strict=True)]


def _context(block: torch.nn.Module, context: torch.Tensor) -> dict[str, torch.Tensor]:
    """The argument that only blocks with cross-attention take."""
    return {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
