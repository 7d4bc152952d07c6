"""UNet calls of mask-aware runs: the transformers are told what to compute, or to say what they gave."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from ..networks.token_stacks import MaskedRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..networks.token_stacks import TokenStacks, Values
    from .load_plans import LoadPlans
    from .token_rows import TokenRow


@contextmanager
def token_call(
    stacks: TokenStacks, rows: Sequence[TokenRow | None], plans: LoadPlans | None = None
) -> Iterator[set[int]]:
    """While a call is made. Gives a set for the numbers of rows that failed, of which nothing is kept.

    Args:
        stacks: Of the UNet that is called.
        rows: Of the call, None for those of other runs; first those that compute all tokens, then as many masked ones.
        plans: What of the next step's entries is to come; None for all.
    """
    failed: set[int] = set()
    blocks = None if plans is None else plans.wanted([row for row in rows if row is not None])
    for row in filter(None, rows):
        row.look_ahead(blocks)
    kept = [(number, row) for number, row in enumerate(rows) if row is not None and row.mask is None]
    parts, begin = [], 0
    for _, alike in groupby(rows, key=_sizes):
        members = tuple(alike)
        parts.append(_part(slice(begin, begin := begin + len(members)), members))
    rows_kept = [number for number, _ in kept]
    recorded: AbstractContextManager[Values] = stacks.recorded(rows_kept) if kept else nullcontext([])
    with recorded as values, stacks.masked(parts):
        yield failed
    for place, (number, row) in enumerate(kept):
        if number not in failed:
            row.keep([each[place] for each in values])
    for masked in rows:
        if masked is not None and masked.mask is not None:
            masked.run.note_masked(masked)


def _sizes(row: TokenRow | None) -> tuple[int, ...]:
    return () if row is None else row.sizes


def _part(place: slice, rows: Sequence[TokenRow | None]) -> MaskedRows:
    """Rows that agree in their sizes."""
    masked = [(row, row.mask) for row in rows if row is not None and row.mask is not None]
    if not masked:
        return MaskedRows(place)

    def known(number: int, empty: torch.Tensor) -> torch.Tensor:
        for (row, _), out in zip(masked, empty, strict=True):
            row.known(number, out)
        return empty

    sides = masked[0][1].places
    places = {side: torch.stack([mask.places[side] for _, mask in masked]) for side in sides}
    return MaskedRows(place, places, known, frozenset().union(*(row.lacks for row, _ in masked)))
