"""The tables that let one launch patch all modules of a LoRA set.

**Slots**, int64 [modules of the plan, 10], one row per module that the plan sets:

| column | |
|---|---|
| 0 | address of the weight, in bytes |
| 1, 2 | the same as a place: number of its buffer, elements from the buffer's start |
| 3 | where W0 is in the pristine buffer, in elements; a multiple of 8 |
| 4, 5 | rows (out), columns (in · kh · kw, in the weight's own memory order) |
| 6, 7 | first and end of its terms; equal for a module that is only restored |
| 8 | number of its first tile |
| 9 | 1 if its rows are whole 16-byte vectors (columns a multiple of 8, address of 16) |

**Terms**, int64 [terms, 4]: where `up` [out, rank] and `down` [rank, columns] are in the factors, in elements; the
rank, padded with zeros to a multiple of 8; 0. **Scales**, float32 [terms]: overwrite them in place to change a LoRA's
scale. **Tiles**, int32 [tiles]: the slot of every tile, so that a program finds its module with one load. **Factors**:
all factors of the set in one buffer of one type, float32 where the LoRAs' types differ.

Addresses are used for the weights alone: they stay where the model has them, and never move. Everything else is a place
in a buffer that the tables own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from .configurations import configuration
from .kernel_source import TYPES
from .memory_format import is_channels_last

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

VECTOR = 8
"""Elements that places, ranks and vectorised rows are multiples of: 16 bytes in half precision."""

SLOT_COLUMNS = 10


@dataclass(frozen=True)
class FactorGroup:
    """Low-rank factors of n modules whose weights have one shape.

    Attributes:
        modules: Their numbers.
        up: [n, out, rank].
        down: [n, rank, in · kh · kw], in the weights' own memory order.
        scales: n numbers, alpha ÷ rank.
    """

    modules: Sequence[int]
    up: torch.Tensor
    down: torch.Tensor
    scales: Sequence[float]


@dataclass(frozen=True)
class PackedLora:
    """A LoRA where the weights are, as the kernel reads it. Tables are on the CPU, the factors on the device.

    Attributes:
        modules: int64 [n].
        terms: int64 [n, 4]; places count from the start of its own factors.
        scales: float32 [n], alpha ÷ rank.
        factors: [elements].
    """

    modules: torch.Tensor
    terms: torch.Tensor
    scales: torch.Tensor
    factors: torch.Tensor


@dataclass(frozen=True)
class PatchPlan:
    """A LoRA set, ready to be patched in: the tables above.

    Attributes:
        modules: Modules that it sets.
        slots: int64 [modules, 10].
        terms: int64 [terms, 4].
        scales: float32 [terms].
        tiles: int32 [tiles].
        factors: [elements].
        block: Rows and columns of a tile.
    """

    modules: tuple[int, ...]
    slots: torch.Tensor
    terms: torch.Tensor
    scales: torch.Tensor
    tiles: torch.Tensor
    factors: torch.Tensor
    block: tuple[int, int]


class WeightTable:
    """The adaptable weights of a model, and W0.

    Attributes:
        weights: As given; module m is `weights[m]`.
        buffers: The storages that they lie in, flat; the op says that it changes these.
        pristine: W0 of every module, one after the other, in the weights' own memory order.
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        """Copies W0.

        Args:
            weights: [out, in] or [out, in, kh, kw], all of one floating-point type and on one device, each without gaps
                in memory: contiguous or channels-last. They may be views of larger tensors. They must not move.

        Raises:
            ValueError: If they are not.
        """
        self.weights = tuple(weights)
        if not self.weights:
            raise ValueError("no weights")
        first = self.weights[0]
        self.buffers: list[torch.Tensor] = []
        numbers: dict[int, int] = {}
        rows = []
        end = 0
        for weight in self.weights:
            _check(weight, first)
            number = numbers.setdefault(weight.untyped_storage().data_ptr(), len(self.buffers))
            if number == len(self.buffers):
                self.buffers.append(_whole_storage(weight))
            address, start, size = weight.data_ptr(), int(weight.storage_offset()), weight.numel()
            columns = size // len(weight)
            vectors = int(columns % VECTOR == 0 and address % 16 == 0)
            rows.append([address, number, start, end, len(weight), columns, 0, 0, 0, vectors])
            end += _padded(size)
        self._slots = torch.tensor(rows, dtype=torch.int64)
        self.pristine = torch.zeros(end, dtype=first.dtype, device=first.device)
        for _, number, start, place, out, columns, *_ in rows:
            self.pristine[place : place + out * columns] = self.buffers[number][start : start + out * columns]

    def check_addresses(self) -> None:
        """Checks that no weight has moved.

        Raises:
            ValueError: If one has.
        """
        addresses = self._slots[:, 0].tolist()
        moved = [m for m, weight in enumerate(self.weights) if weight.data_ptr() != addresses[m]]
        if moved:
            raise ValueError(f"weights {moved[:8]} have moved since the table was built")

    def pristine_of(self, first: int, count: int) -> torch.Tensor:
        """W0 of `count` neighbours of one shape, from module `first`: a view [count, out, in · kh · kw]."""
        place, rows, columns = self._slots[first, 3:6].tolist()
        strides = (_padded(rows * columns), columns, 1)
        return self.pristine.as_strided((count, rows, columns), strides, place)

    def pack(self, groups: Sequence[FactorGroup]) -> PackedLora:
        """A LoRA on the weights' device. Once per LoRA; on the current stream.

        Raises:
            ValueError: If factors do not fit their modules.
        """
        kinds = {tensor.dtype for group in groups for tensor in (group.up, group.down)}
        dtype = kinds.pop() if len(kinds) == 1 and kinds <= TYPES.keys() else torch.float32
        device = self.pristine.device
        parts: list[torch.Tensor] = []
        tables = [torch.zeros(0, 4, dtype=torch.int64)]
        end = 0
        for group in groups:
            self._check_factors(group)
            padding = (-group.up.shape[-1]) % VECTOR
            pad = torch.nn.functional.pad
            up = pad(group.up.to(device, dtype), (0, padding))
            down = pad(group.down.to(device, dtype), (0, 0, 0, padding))
            parts += up.flatten(), down.flatten()
            numbers = torch.arange(len(up))
            table = torch.zeros(len(up), 4, dtype=torch.int64)
            table[:, 0] = end + numbers * up[0].numel()
            table[:, 1] = end + up.numel() + numbers * down[0].numel()
            table[:, 2] = up.shape[-1]
            tables.append(table)
            end += up.numel() + down.numel()
        return PackedLora(
            modules=torch.tensor([module for group in groups for module in group.modules], dtype=torch.int64),
            terms=torch.cat(tables),
            scales=torch.tensor([scale for group in groups for scale in group.scales], dtype=torch.float32),
            factors=torch.cat(parts) if parts else torch.zeros(0, dtype=dtype, device=device),
        )

    def plan(self, loras: Sequence[tuple[PackedLora, float]], restored: Iterable[int] = ()) -> PatchPlan:
        """The tables of a LoRA set: a few operations on small tensors, and a copy of its factors on the device.

        Args:
            loras: LoRAs of this table with the request's scales; sums are formed in this order.
            restored: Further modules that shall be W0: those that the set before adapted.
        """
        kinds = {lora.factors.dtype for lora, _ in loras if len(lora.factors)}
        dtype = kinds.pop() if len(kinds) == 1 else torch.float32
        none, no_terms = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64)
        starts = [0, *accumulate(len(lora.factors) for lora, _ in loras)]
        moved = [lora.terms + torch.tensor([at, at, 0, 0]) for (lora, _), at in zip(loras, starts, strict=False)]
        of_term = torch.cat([none, *(lora.modules for lora, _ in loras)])
        order = of_term.argsort(stable=True)
        modules = torch.cat([of_term, torch.tensor(list(restored), dtype=torch.int64)]).unique()
        counts = torch.bincount(torch.searchsorted(modules, of_term), minlength=len(modules))
        device = self.pristine.device
        slots, tiles, block = self._place_tiles(modules, counts)
        scales = torch.cat([torch.zeros(0), *(lora.scales * scale for lora, scale in loras)])
        factors = [lora.factors.to(dtype) for lora, _ in loras] or [torch.zeros(0, dtype=dtype, device=device)]
        return PatchPlan(
            modules=tuple(modules.tolist()),
            slots=slots.to(device),
            terms=torch.cat([no_terms, *moved])[order].to(device),
            scales=scales[order].to(device),
            tiles=tiles.to(device),
            factors=factors[0] if len(factors) == 1 else torch.cat(factors),
            block=block,
        )

    def _place_tiles(
        self, modules: torch.Tensor, terms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
        """Slots of these modules with so many terms each, tiles, and the size of a tile."""
        settings = configuration("lora_patch", self.pristine.device)
        block = settings["block_rows"], settings["block_columns"]
        slots = self._slots[modules]
        ends = terms.cumsum(0)
        slots[:, 6], slots[:, 7] = ends - terms, ends
        counts = -(-slots[:, 4] // block[0]) * -(-slots[:, 5] // block[1])
        slots[:, 8] = counts.cumsum(0) - counts
        tiles = torch.arange(len(modules), dtype=torch.int32).repeat_interleave(counts)
        return slots, tiles, block

    def _check_factors(self, group: FactorGroup) -> None:
        count, rank = len(group.modules), group.up.shape[-1]
        for module in group.modules:
            out, columns = self._slots[module, 4:6].tolist()
            if group.up.shape != (count, out, rank) or group.down.shape != (count, rank, columns):
                shapes = f"factors {list(group.up.shape)}, {list(group.down.shape)} for {count} modules"
                raise ValueError(f"{shapes}; wanted by module {module}: {[count, out, rank]}, {[count, rank, columns]}")


def _check(weight: torch.Tensor, first: torch.Tensor) -> None:
    if (weight.dtype, weight.device) != (first.dtype, first.device):
        raise ValueError(f"weights are {first.dtype} on {first.device}, one is {weight.dtype} on {weight.device}")
    if not (weight.is_contiguous() or is_channels_last(weight)) or not 0 < weight.numel() < 2**31:
        raise ValueError(f"a weight {list(weight.shape)} is empty, has gaps in memory, or 2³¹ elements")


def _whole_storage(weight: torch.Tensor) -> torch.Tensor:
    storage = weight.untyped_storage()
    empty = torch.empty(0, dtype=weight.dtype, device=weight.device)
    return empty.set_(storage, 0, (storage.nbytes() // weight.itemsize,), (1,))


def _padded(number: int) -> int:
    return -(-number // VECTOR) * VECTOR
