"""A LoRA on the device that it is patched in on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..files.canonical import CanonicalLora

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ....kernels.lora_tables import PackedLora
    from ..files.canonical import Group


@dataclass(frozen=True)
class PreparedLora(CanonicalLora):
    """Groups whose tensors are on the device, columns in the weights' memory order.

    Attributes:
        packed: The same factors as the patch kernel reads them; None where some group is not low-rank.
    """

    packed: PackedLora | None = None

    @classmethod
    def of(cls, groups: Sequence[Group], packed: PackedLora) -> PreparedLora:
        """With the groups' tensors as views of the packed factors: for sets in which other LoRAs are not packed.

        Args:
            groups: low_rank ones, in the order in which they were packed; ranks grow to what they are padded to.
            packed: Of these groups.
        """
        start, viewed = 0, []
        for group in groups:
            (count, out, _), columns = group.tensors["up"].shape, group.tensors["down"].shape[2]
            up, down, rank, _ = packed.terms[start].tolist()
            tensors = {
                "up": packed.factors[up : up + count * out * rank].view(count, out, rank),
                "down": packed.factors[down : down + count * rank * columns].view(count, rank, columns),
            }
            viewed.append(replace(group, tensors=tensors))
            start += count
        return cls(tuple(viewed), packed=packed)

    def record_stream(self) -> None:
        """Tells the allocator that the current stream uses it, where another one made it."""
        tensors = [tensor for group in self.groups for tensor in group.tensors.values()]
        for tensor in tensors if self.packed is None else [self.packed.factors]:
            if tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream(tensor.device))

    @property
    def nbytes(self) -> int:
        """Memory on the device, in bytes."""
        if self.packed is not None:
            return self.packed.factors.nbytes
        return sum(tensor.nbytes for group in self.groups for tensor in group.tensors.values())
