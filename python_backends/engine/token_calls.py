"""UNet calls of mask-aware runs: the transformers are told what to compute, or to say what they gave."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..networks.token_stacks import TokenStacks
    from .load_plans import LoadPlans
    from .token_rows import TokenRow


@contextmanager
def token_call(
    stacks: TokenStacks, rows: Sequence[TokenRow | None], device: torch.device, plans: LoadPlans | None = None
) -> Iterator[set[int]]:
    """While a call is made: of rows that agree in what is masked, or of such as compute all.

    Gives a set for the numbers of rows that failed, of which nothing is kept.

    Args:
        stacks: Of the UNet that is called.
        rows: Of the call; None for those of other runs.
        device: Where the UNet is.
        plans: What of the next step's entries is to come; None for all.
    """
    failed: set[int] = set()
    wanted = [(number, row) for number, row in enumerate(rows) if row is not None]
    masked = [row for _, row in wanted if row.mask is not None]
    blocks = None if plans is None else plans.wanted([row for _, row in wanted])
    for _, row in wanted:
        row.look_ahead(blocks)
    if not masked:
        with stacks.recorded([number for number, _ in wanted]) as values:
            yield failed
        for place, (number, row) in enumerate(wanted):
            if number not in failed:
                row.keep([each[place] for each in values])
        return
    masks = [row.mask for row in masked if row.mask is not None]
    places = {side: torch.stack([mask.places[side] for mask in masks]).to(device) for side in masks[0].places}

    def known(number: int, empty: torch.Tensor) -> torch.Tensor:
        for row, out in zip(masked, empty, strict=True):
            row.known(number, out)
        return empty

    with stacks.masked(places, known, frozenset().union(*(row.lacks for row in masked))):
        yield failed
    for row in masked:
        row.run.note_masked(row)
