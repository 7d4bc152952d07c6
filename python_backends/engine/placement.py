"""Which shard evaluates which half of which request in one denoising step (SwiftDiffusion's latent parallelism)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .run import Denoising

    Row = tuple[Denoising, int]


def place(batch: Sequence[Denoising], shards: int) -> list[list[Row]]:
    """Rows of every shard, for one step.

    A request's two halves stay together unless splitting them shortens the step: one request in flight goes to two
    shards at once, a batch that fills the shards with whole requests is not split, since splitting then only costs.
    A step lasts as long as its fullest shard, counted in latent cells. Mask-aware requests stay on the first, which has
    what their tokens were.

    Args:
        batch: The requests that take a step.
        shards: Their number.

    Returns:
        For each shard its (request, half) rows; some may be empty. The pictures do not depend on the choice.
    """
    stay = [(denoising, half) for denoising in batch if denoising.is_mask_aware for half in denoising.halves]
    free = [denoising for denoising in batch if not denoising.is_mask_aware]
    whole = _fill([[(denoising, half) for half in denoising.halves] for denoising in free], shards, stay)
    split = _fill([[(denoising, half)] for denoising in free for half in denoising.halves], shards, stay)
    return min(whole, split, key=lambda rows: max(map(_cells, rows)))


def _fill(units: list[list[Row]], shards: int, stay: list[Row]) -> list[list[Row]]:
    """Largest unit first, each to the shard that has least; the first one has those that stay."""
    rows: list[list[Row]] = [[*stay], *([] for _ in range(shards - 1))]
    for unit in sorted(units, key=_cells, reverse=True):
        min(rows, key=_cells).extend(unit)
    return rows


def _cells(rows: list[Row]) -> int:
    return sum(denoising.latents.numel() for denoising, _ in rows)
