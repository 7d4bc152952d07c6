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
from typing import TYPE_CHECKING

import torch

from .configurations import configuration
from .kernel_source import TYPES
from .memory_format import is_channels_last

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

VECTOR = 8
"""Elements that places, ranks and vectorised rows are multiples of: 16 bytes in half precision."""

SLOT_COLUMNS = 10


@dataclass(frozen=True)
class LowRankTerm:
    """scale · up · down, of one LoRA for one module.

    Attributes:
        up: [out, rank].
        down: [rank, in · kh · kw], in the order of a contiguous [out, in, kh, kw] weight.
        scale: Of the request, times alpha ÷ rank.
    """

    up: torch.Tensor
    down: torch.Tensor
    scale: float


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

    def plan(self, terms: Mapping[int, Sequence[LowRankTerm]], restored: Iterable[int] = ()) -> PatchPlan:
        """The tables of a LoRA set. Once per set; the factors are packed where they lie and sent in one copy.

        Args:
            terms: Module → its terms, summed in this order; all factors on one device, be it the CPU.
            restored: Further modules that shall be W0: those that the set before adapted.

        Raises:
            ValueError: If a term does not fit its module.
        """
        modules = sorted({*terms, *restored})
        ordered = [(module, term) for module in modules for term in terms.get(module, ())]
        kinds = {tensor.dtype for _, term in ordered for tensor in (term.up, term.down)}
        dtype = kinds.pop() if len(kinds) == 1 and kinds <= TYPES.keys() else torch.float32
        parts: list[torch.Tensor] = []
        rows = []
        end = 0
        for module, term in ordered:
            up, down = self._factors(module, term)  # of a multiple of 8 elements, both
            parts += up.flatten().to(dtype), down.flatten().to(dtype)
            rows.append([end, end + up.numel(), up.shape[1], 0])
            end += up.numel() + down.numel()
        device = self.pristine.device
        slots, tiles, block = self._place_tiles(modules, [len(terms.get(module, ())) for module in modules])
        return PatchPlan(
            modules=tuple(modules),
            slots=slots.to(device),
            terms=torch.tensor(rows, dtype=torch.int64).reshape(-1, 4).to(device),
            scales=torch.tensor([term.scale for _, term in ordered], dtype=torch.float32).to(device),
            tiles=tiles.to(device),
            factors=(torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)).to(device),
            block=block,
        )

    def _place_tiles(
        self, modules: Sequence[int], terms: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
        settings = configuration("lora_patch", self.pristine.device)
        block = settings["block_rows"], settings["block_columns"]
        slots = self._slots[list(modules)].clone()
        ends = torch.tensor(terms, dtype=torch.int64).cumsum(0)
        slots[:, 6], slots[:, 7] = ends - torch.tensor(terms, dtype=torch.int64), ends
        counts = -(-slots[:, 4] // block[0]) * -(-slots[:, 5] // block[1])
        slots[:, 8] = counts.cumsum(0) - counts
        tiles = torch.arange(len(modules), dtype=torch.int32).repeat_interleave(counts)
        return slots, tiles, block

    def _factors(self, module: int, term: LowRankTerm) -> tuple[torch.Tensor, torch.Tensor]:
        """Both factors with the padded rank, `down` in the weight's memory order."""
        weight = self.weights[module]
        rank = term.up.shape[-1]
        wanted = (len(weight), rank), (rank, weight.numel() // len(weight))
        if (tuple(term.up.shape), tuple(term.down.shape)) != wanted:
            raise ValueError(
                f"factors {list(term.up.shape)}, {list(term.down.shape)} for a weight {list(weight.shape)}"
            )
        down = term.down
        if is_channels_last(weight):
            down = down.reshape(rank, *weight.shape[1:]).permute(0, 2, 3, 1).reshape(rank, -1)
        padding = _padded(rank) - rank
        pad = torch.nn.functional.pad
        return pad(term.up, (0, padding)), pad(down, (0, 0, 0, padding))


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
