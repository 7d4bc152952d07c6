"""Which tokens of a UNet's transformers lie in a mask, level by level, padded to a few sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from ..request.mask_aware import PARTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Side = tuple[int, int]


@dataclass(frozen=True)
class TokenMask:
    """The tokens of one mask.

    Attributes:
        area: Share of the latent cells that are masked.
        sides: Height and width of every level, finest first; of several that have one token they are the same.
        places: Height and width → the places of its tokens in row-major order, int64 [M], ascending.
    """

    area: float
    sides: tuple[Side, ...]
    places: Mapping[Side, torch.Tensor]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens by level, finest first."""
        return tuple(len(self.places[side]) for side in self.sides)

    @property
    def is_full(self) -> bool:
        """Whether no token is left out."""
        return all(len(places) == height * width for (height, width), places in self.places.items())

    def to(self, device: torch.device) -> TokenMask:
        """The same with its places on a device."""
        return replace(self, places={side: places.to(device) for side, places in self.places.items()})

    def covers(self, mask: torch.Tensor) -> bool:
        """Whether no token of another mask [h, w] is left out, on any level."""
        for inside in _pooled(mask, len(self.sides)):
            left = inside.flatten() > 0
            left[self.places[inside.shape[-2], inside.shape[-1]]] = False
            if left.any():
                return False
        return True


def token_mask(mask: torch.Tensor, levels: int) -> TokenMask:
    """The tokens of a mask on every level of a UNet.

    A token is in it if any of its latent cells is; the next nearest ones pad it (by king's moves, ties in row-major
    order).

    Args:
        mask: [h, w], true or above 0 where latents are masked.
        levels: Of the UNet: each halves the one before, rounding up.

    Raises:
        ValueError: If nothing is masked.
    """
    if not (mask > 0).any():
        raise ValueError("nothing is masked")
    inside = [(each, (each.shape[-2], each.shape[-1])) for each in _pooled(mask, levels)]
    sides, places = tuple(side for _, side in inside), {side: _padded(each) for each, side in inside}
    return TokenMask(float((mask > 0).float().mean()), sides, places)


def sizes_of(parts: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    """`TokenMask.sizes` of latents [height, width] where a mask has so many of `PARTS` of every level."""
    return tuple(-(-part * halved(height, level) * halved(width, level) // PARTS) for level, part in enumerate(parts))


def halved(side: int, times: int) -> int:
    """A side on a level so many below the finest."""
    return -(-side // 2**times)


def _pooled(mask: torch.Tensor, levels: int) -> Iterator[torch.Tensor]:
    """A mask [h, w] on every level, [1, 1, h, w] of 0 and 1."""
    inside = (mask > 0)[None, None].float()
    for _ in range(levels):
        yield inside
        inside = functional.max_pool2d(inside, 2, 2, ceil_mode=True)


def _padded(inside: torch.Tensor) -> torch.Tensor:
    """Places of the ones of [1, 1, h, w], and of their nearest others."""
    tokens = inside.numel()
    parts = -(-int(inside.sum()) * PARTS // tokens)
    distance, reached = torch.zeros_like(inside), inside
    while not reached.all():
        distance += 1 - reached
        reached = functional.max_pool2d(reached, 3, 1, 1)
    return distance.flatten().argsort(stable=True)[: -(-parts * tokens // PARTS)].sort().values
