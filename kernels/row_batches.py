"""Which rows of a batch a CPU multiplies together, where each has a slot of factors or none."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

COPIED = 8192
"""Elements of a slot's factors up to which a copy of them costs less than a product of its own. Measured on one thread
with 64 to 1280 features, ranks 4 to 128, 16 to 4096 tokens: 16 rows of 64 features and rank 4 take a third of the time
together, rows of 1280 features and rank 16 the same or less apart."""


class RowBatch(NamedTuple):
    """Runs of neighbouring rows.

    Attributes:
        first: Row that the first begins with.
        length: Rows of each.
        slots: The slot of each.
    """

    first: int
    length: int
    slots: list[int]

    @property
    def rows(self) -> slice:
        """All rows."""
        return slice(self.first, self.first + self.length * len(self.slots))

    def factors(self, down: torch.Tensor, up: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What each run is multiplied by: views of one slot, copies of several.

        Args:
            down: [S, R, in].
            up: [S, out, R].
            rank: How much of R.

        Returns:
            [runs, in, rank] and [runs, rank, out].
        """
        down, up = down[:, :rank], up[:, :, :rank]
        if len(self.slots) == 1:
            (slot,) = self.slots
            return down[slot : slot + 1].mT, up[slot : slot + 1].mT
        chosen = torch.tensor(self.slots)
        return down.index_select(0, chosen).mT, up.index_select(0, chosen).mT


def row_batches(slots: Sequence[int], ranks: Sequence[int], sides: int) -> list[RowBatch]:
    """Runs of rows with one slot; runs of one length that touch go together where copies of their factors are small.

    Args:
        slots: Of every row; negative for none.
        ranks: Of every slot; rows of a slot of rank 0 are left out.
        sides: Elements of a slot's factors for each rank: in + out.
    """
    batches: list[RowBatch] = []
    end = 0
    for slot, run in groupby(slots):
        first, end = end, end + len(list(run))
        if slot < 0 or not ranks[slot]:
            continue
        if batches:
            last = batches[-1]
            touches = (last.rows.stop, last.length) == (first, end - first)
            if touches and max(ranks[slot], ranks[last.slots[-1]]) * sides <= COPIED:
                last.slots.append(slot)
                continue
        batches.append(RowBatch(first, end - first, [slot]))
    return batches
