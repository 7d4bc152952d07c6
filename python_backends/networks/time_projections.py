"""What residual blocks make of the time embedding, of all blocks of one width in one product."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch.nn import functional

from .fused_attention import are_hooked
from .fused_modules import FusedResnetBlock2D

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..lora.patching.patcher import Patcher


class _Product(NamedTuple):
    layers: Sequence[torch.nn.Linear]
    weight: torch.Tensor
    bias: torch.Tensor


class TimeProjections(torch.nn.Module):
    """The `time_emb_proj` of a UNet's `FusedResnetBlock2D`s, which find theirs in what this gives, not in `temb`."""

    def __init__(self, unet: torch.nn.Module, patcher: Patcher, component: str) -> None:
        """Lays biases beside each other, as the weights are; all stay patchable in place.

        Where weights do not lie so, or a block is of another kind, all go on with layers of their own, and this gives
        what it is given.

        Args:
            unet: Changed in place.
            patcher: Of its weights.
            component: Its name there.
        """
        super().__init__()
        self._products: list[_Product] = []
        by_width: dict[int, list[tuple[int, str, FusedResnetBlock2D]]] = {}
        for name, block in unet.named_modules():
            if isinstance(block, ResnetBlock2D) and block.time_emb_proj is not None:
                if not isinstance(block, FusedResnetBlock2D):
                    return
                layer = f"{name}.time_emb_proj"
                _, position = patcher.places[component, layer]
                by_width.setdefault(block.out_channels, []).append((position, layer, block))
        groups = [sorted(group, key=lambda each: each[0]) for group in by_width.values()]
        weights = [patcher.joined(component, [layer for _, layer, _ in group]) for group in groups]
        if any(weight is None for weight in weights):
            return
        first = 0
        for group, weight in zip(groups, weights, strict=True):
            assert weight is not None
            blocks = [block for _, _, block in group]
            layers: list[torch.nn.Linear] = [block.time_emb_proj for block in blocks]
            bias = torch.cat([layer.bias.data for layer in layers])
            for block, part in zip(blocks, bias.chunk(len(blocks)), strict=True):
                block.time_emb_proj.bias.data = part
                block.of_time = slice(first, first := first + len(part))
            self._products.append(_Product(layers, weight, bias))

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """[B, all blocks' channels] of a time embedding [B, width]."""
        if not self._products:
            return embedding
        activated, parts = functional.silu(embedding), list[torch.Tensor]()
        for layers, weight, bias in self._products:
            if are_hooked(*layers):
                parts += [layer(activated) for layer in layers]
            else:
                parts.append(functional.linear(activated, weight, bias))
        return torch.cat(parts, dim=1)
