"""Rows with different LoRA sets in one step: which set is patched in, which are beside the weights, who goes alone.

Whatever is chosen, the picture is the same: the choice is by cost, which is measured at load and at every step. Needs
no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..lora.files.lora_set import NO_LORAS, LoraSet
from .step_times import WorkTimes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..lora.patching.resident import ResidentLoras

MIXED = 1.1
"""Sets share a call only where that should save more than costs are measured to vary."""

LOOKED_AT = 2.0
"""What should cost up to so many times as much may have become cheaper since it was measured."""

LASTS_STEPS = 8
"""Steps for which a batch stays as it is, about: what patching for all of them costs is spread over so many."""

FALLS = 0.5
"""What is compared is what evaluations take when nothing disturbs them: a lower measurement weighs more."""

WEIGHT, OUTLIER = 0.2, 3.0
"""Of the latest measurement in a running mean, and the most of it that counts, in times of the mean."""


@dataclass(frozen=True)
class Part:
    """Rows that are evaluated in one call.

    Attributes:
        patched: The set in the weights.
        rows: Of the step's.
        beside: What each row has beside it; may have negative scales.
    """

    patched: LoraSet
    rows: tuple[int, ...]
    beside: tuple[LoraSet, ...]


class LoraCosts:
    """Seconds that evaluations, swaps and factors beside the weights take."""

    def __init__(self) -> None:
        self.plain = WorkTimes(falls=FALLS)
        self._swaps: dict[bool, float] = {}
        self._of_a_rank: float | None = None

    def note_swap(self, seconds: float, kept: bool) -> None:
        """Another set was patched in, or its kept weights were taken."""
        self._swaps[kept] = _mean(self._swaps.get(kept), seconds)

    def note_beside(self, work: int, ranks: int, seconds: float) -> None:
        """An evaluation of so much work (rows × pixels) took so long with so many ranks × pixels beside the weights."""
        of_a_rank = max(0.0, seconds - self.plain.expected(work)) / ranks
        known = self._of_a_rank
        self._of_a_rank = _mean(known, of_a_rank if not known else min(of_a_rank, OUTLIER * known))

    def swap(self, kept: bool) -> float:
        """Of making another set resident."""
        return self._swaps.get(kept, 0.0)

    def beside(self, ranks: int) -> float:
        """What so many ranks × pixels add."""
        return (self._of_a_rank or 0.0) * ranks


def plan(
    sets: Sequence[LoraSet], pixels: int, loras: ResidentLoras, costs: LoraCosts, look_again: bool = False
) -> list[Part]:
    """The cheapest way to evaluate rows of one size, each with its set.

    Args:
        sets: Of the rows.
        pixels: Of each row's picture.
        loras: What is there, and can be.
        costs: Measured.
        look_again: Whether sets have shared calls for so long that what they cost apart is known from other times only:
            they are then evaluated apart, unless that should cost far more.
    """
    distinct = sorted(dict.fromkeys(sets), key=lambda each: each != loras.current)
    if len(distinct) == 1:
        return [Part(distinct[0], tuple(range(len(sets))), (NO_LORAS,) * len(sets))]
    options = [_grouped(distinct, sets)]
    leased = {key for each in distinct for key, _ in each}
    for patched in dict.fromkeys((loras.current, NO_LORAS, *distinct)):
        if leased.issuperset(key for key, _ in patched):  # files of others may be gone
            option = _mixed(patched, distinct, sets, loras)
            if option is not None:
                options.append(option)
    seconds = [_cost(parts, pixels, loras, costs) for parts in options]
    if look_again and seconds[0] <= LOOKED_AT * min(seconds):
        return options[0]
    return min(zip(seconds, options, strict=True), key=lambda each: each[0] * (MIXED if mixes(each[1]) else 1.0))[1]


def difference(wanted: LoraSet, patched: LoraSet) -> LoraSet:
    """What has to be added to a patched set so that it is the wanted one."""
    scales = dict(wanted)
    for key, scale in patched:
        scales[key] = scales.get(key, 0.0) - scale
    return tuple(sorted((key, scale) for key, scale in scales.items() if scale))


def mixes(parts: Sequence[Part]) -> bool:
    """Whether any row has LoRAs beside the weights."""
    return any(any(part.beside) for part in parts)


def _grouped(distinct: Sequence[LoraSet], sets: Sequence[LoraSet]) -> list[Part]:
    """A part for each set, patched in one after the other."""
    parts = []
    for each in distinct:
        rows = tuple(row for row, loras in enumerate(sets) if loras == each)
        parts.append(Part(each, rows, (NO_LORAS,) * len(rows)))
    return parts


def _mixed(
    patched: LoraSet, distinct: Sequence[LoraSet], sets: Sequence[LoraSet], loras: ResidentLoras
) -> list[Part] | None:
    """One part for all sets that can be beside a patched one, one for each other; None if that mixes nothing."""
    together: dict[LoraSet, LoraSet] = {}
    ranks: list[int] = []
    for each in distinct:
        beside = difference(each, patched)
        of_it = loras.rank(beside)
        if of_it is not None and loras.fits_beside([*ranks, of_it]):
            together[each] = beside
            ranks.append(of_it)
    if len(together) < 2:
        return None
    rows = tuple(row for row, each in enumerate(sets) if each in together)
    mixed = Part(patched, rows, tuple(together[sets[row]] for row in rows))
    parts = [mixed, *_grouped([each for each in distinct if each not in together], sets)]
    return sorted(parts, key=lambda part: part.patched != distinct[0])  # what is resident, if anything is, comes first


def _cost(parts: Sequence[Part], pixels: int, loras: ResidentLoras, costs: LoraCosts) -> float:
    """Seconds of a step, as it repeats: one of several parts begins where the step before ended."""
    swaps = (len(parts) - 1) * costs.swap(loras.can_keep(len(parts)))
    swaps += all(part.patched != loras.current for part in parts) * costs.swap(kept=False) / LASTS_STEPS
    ranks = sum((loras.rank(beside) or 0) * pixels for part in parts for beside in part.beside)
    plain = sum(costs.plain.expected(len(part.rows) * pixels) for part in parts)
    return swaps + plain + costs.beside(ranks)


def _mean(known: float | None, latest: float) -> float:
    return latest if known is None else known + WEIGHT * (latest - known)
