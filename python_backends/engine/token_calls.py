"""UNet calls of mask-aware runs: the transformers are told what to compute, or to say what they gave."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from ..common.errors import EntryLostError
from ..networks.token_stacks import MaskedRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..common.errors import RequestError
    from ..networks.token_stacks import TokenStacks, Values
    from .load_plans import LoadPlans
    from .token_rows import TokenRow


@contextmanager
def token_call(
    stacks: TokenStacks, rows: Sequence[TokenRow | None], plans: LoadPlans | None = None
) -> Iterator[dict[int, RequestError]]:
    """While a call is made. Yields a mapping row → error, to be added to; of rows in it nothing is kept.

    A row of which something known could not be read gets `EntryLostError`: its step is to be taken again.

    Args:
        stacks: Of the UNet that is called.
        rows: Of the call, None for those of other runs; first those that compute all tokens, then as many masked ones.
        plans: What of the next step's entries is to come; None for all.
    """
    failures: dict[int, RequestError] = {}
    blocks = None if plans is None else plans.wanted([row for row in rows if row is not None])
    for row in filter(None, rows):
        row.look_ahead(blocks)
    kept = [(number, row) for number, row in enumerate(rows) if row is not None and row.mask is None]
    parts, begin = [], 0
    for _, alike in groupby(rows, key=_kind):
        members = tuple(alike)
        parts.append(_part(slice(begin, begin := begin + len(members)), members, failures))
    rows_kept = [number for number, _ in kept]
    recorded: AbstractContextManager[Values] = stacks.recorded(rows_kept) if kept else nullcontext([])
    with recorded as values, stacks.masked(parts):
        yield failures
    for place, (number, row) in enumerate(kept):
        if number not in failures:
            row.keep([each[place] for each in values])
    for number, masked in enumerate(rows):
        if masked is not None and masked.mask is not None and number not in failures:
            masked.run.note_masked(masked)


def _kind(row: TokenRow | None) -> tuple[tuple[int, ...], frozenset[int]]:
    return ((), frozenset()) if row is None else (row.sizes, row.lacks)


def _part(place: slice, rows: Sequence[TokenRow | None], failures: dict[int, RequestError]) -> MaskedRows:
    """Rows that agree in how many tokens are masked, and in which blocks."""
    masked = [(row, row.mask) for row in rows if row is not None and row.mask is not None]
    if not masked:
        return MaskedRows(place)

    def known(number: int, empty: torch.Tensor) -> torch.Tensor:
        for at, (row, _), out in zip(range(place.start, place.stop), masked, empty, strict=True):
            try:
                if at not in failures:
                    row.known(number, out)
            except EntryLostError as error:
                failures[at] = error
        return empty

    sides = masked[0][1].places
    places = {side: torch.stack([mask.places[side] for _, mask in masked]) for side in sides}
    return MaskedRows(place, places, known, masked[0][0].lacks)
