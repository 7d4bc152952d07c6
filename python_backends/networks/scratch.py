"""Memory that calls use one after the other, and that lies where it lay."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

ALIGNED = 256
"""Bytes that tensors in it begin at a multiple of, as CUDA's allocations do."""


class Scratch:
    """Room on a device for the tensors of one call at a time: the same ones lie at the same places, until it grows.

    Attributes:
        memory: Of all; another one after it grew.
    """

    def __init__(self, device: torch.device, least_bytes: int = 0) -> None:
        """Takes nothing yet, and so much with the first call."""
        self._least_bytes = least_bytes
        self.memory = torch.empty(0, dtype=torch.uint8, device=device)

    def take(self, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Tensors with the shapes, types and strides of others, beside each other; their content is anything.

        Args:
            like: Dense ones; on the meta device they cost nothing.
        """
        *starts, end = accumulate((-(-each.nbytes // ALIGNED) * ALIGNED for each in like), initial=0)
        if end > self.memory.numel():
            self.memory = self.memory.new_empty(max(end, self._least_bytes, 2 * self.memory.numel()))
        return [
            self.memory.view(each.dtype).as_strided(each.shape, each.stride(), start // each.itemsize)
            for each, start in zip(like, starts, strict=True)
        ]
