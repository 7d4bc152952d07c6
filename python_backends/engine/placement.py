"""Which shard evaluates which half of which request in one denoising step (SwiftDiffusion's latent parallelism)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .run import Denoising

    Row = tuple[Denoising, int]
    Cost = Callable[[Denoising, int], float]


def cells(run: Denoising, _half: int) -> float:
    """What a row costs where all its tokens are computed, as far as others can be compared with it."""
    return run.latents.numel()


def place(batch: Sequence[Denoising], shards: int, cost: Cost = cells) -> list[list[Row]]:
    """Rows of every shard, for one step.

    A request's two halves stay together unless splitting them shortens the step: one request in flight goes to two
    shards at once, a batch that fills the shards with whole requests is not split, since splitting then only costs.
    A step lasts as long as its fullest shard. Mask-aware requests stay on the first, which has what their tokens were.

    Args:
        batch: The requests that take a step.
        shards: Their number.
        cost: Of a half of a request in this step.

    Returns:
        For each shard its (request, half) rows; some may be empty. The pictures do not depend on the choice.
    """
    costs = {(run, half): cost(run, half) for run in batch for half in run.halves}

    def total(rows: list[Row]) -> float:
        return sum(costs[row] for row in rows)

    stay = [(run, half) for run in batch if run.is_mask_aware for half in run.halves]
    free = [run for run in batch if not run.is_mask_aware]
    whole = _fill([[(run, half) for half in run.halves] for run in free], shards, stay, total)
    split = _fill([[(run, half)] for run in free for half in run.home_first], shards, stay, total)
    return min(whole, split, key=lambda rows: max(map(total, rows)))


def _fill(units: list[list[Row]], shards: int, stay: list[Row], total: Callable[[list[Row]], float]) -> list[list[Row]]:
    """Largest unit first, each to the shard that has least; the first one has those that stay."""
    rows: list[list[Row]] = [[*stay], *([] for _ in range(shards - 1))]
    for unit in sorted(units, key=total, reverse=True):
        min(rows, key=total).extend(unit)
    return rows
