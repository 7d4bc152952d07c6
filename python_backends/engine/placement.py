"""Which shard evaluates which half of which request in one denoising step (SwiftDiffusion's latent parallelism)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..lora.files.lora_set import LoraSet
    from .run import Denoising

    Row = tuple[Denoising, int]


SWAP_COST = 0.5
"""What making another LoRA set resident costs a shard, in evaluations of one row."""


def place(batch: Sequence[Denoising], resident: Sequence[LoraSet]) -> list[list[Row]]:
    """Rows of every shard, for one step.

    A request's two halves stay together unless splitting them shortens the step: one request in flight goes to two
    shards at once, a batch that fills the shards with whole requests is not split, since splitting then only costs.
    A step lasts as long as its fullest shard, counted in latent cells; a shard that has to swap LoRA sets takes longer,
    so requests gather where their set is resident.

    Args:
        batch: The requests that take a step.
        resident: The LoRA set of each shard.

    Returns:
        For each shard its (request, half) rows; some may be empty. The pictures do not depend on the choice.
    """
    whole = _fill([[(denoising, half) for half in denoising.halves] for denoising in batch], resident)
    split = _fill([[(denoising, half)] for denoising in batch for half in denoising.halves], resident)
    return (split if split.length < whole.length else whole).rows


@dataclass(frozen=True)
class _Placed:
    rows: list[list[Row]]
    length: float


def _fill(units: list[list[Row]], resident: Sequence[LoraSet]) -> _Placed:
    """Largest unit first, each to the shard that is then done first."""
    rows: list[list[Row]] = [[] for _ in resident]
    loads = [0.0] * len(resident)
    sets = [{loras} for loras in resident]
    for unit in sorted(units, key=_cells, reverse=True):
        request = unit[0][0]
        swap = SWAP_COST * request.latents.numel()

        def finish(shard: int, request: Denoising = request, swap: float = swap) -> float:
            return loads[shard] + (0.0 if request.loras.current in sets[shard] else swap)

        shard = min(range(len(resident)), key=finish)
        loads[shard] = finish(shard) + _cells(unit)
        sets[shard].add(request.loras.current)
        rows[shard].extend(unit)
    return _Placed(rows, max(loads))


def _cells(rows: list[Row]) -> int:
    return sum(denoising.latents.numel() for denoising, _ in rows)
