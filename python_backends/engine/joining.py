"""Somebody new in a line: at which place it breaks no promise, and when it would be done. Needs no torch."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .line import ends, next_stretch, run_ahead, spares

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .line import Queued
    from .step_times import StepTimes


@dataclass(frozen=True)
class Outlook:
    """Of somebody new: how many it would overtake, whether it would take the next step, when it would be done."""

    overtakes: int
    begins: bool
    end: float


class Joining:
    """Somebody new in a line, at one place or another; what comes of those before it is run ahead once."""

    def __init__(self, line: Sequence[Queued], at: float, new: Queued, places: int, times: StepTimes) -> None:
        self._line, self._at, self._new = line, at, new
        self._places, self._times = places, times
        # Place → when it first matters who is there, and who of those before it is left by then.
        self._reached: dict[int, tuple[float, list[Queued]]] = {0: (at, [])}

    def first(self) -> int:
        """The place behind those who do not give way."""
        return max((place for place, each in enumerate(self._line, 1) if not each.gives_way(self._new)), default=0)

    def place(self) -> int:
        """From the first on, that where no promise is broken."""
        return bisect_left(range(len(self._line)), True, self.first(), key=self._spares)

    def outlook(self, place: int) -> Outlook:
        """What comes of it there."""
        begins = next_stretch([*self._line[:place], self._new], self._at, self._places, self._times).runs > place
        end = next(end for run, end in self._ends(place) if run == self._new.run)
        return Outlook(len(self._line) - place, begins, end)

    def _spares(self, place: int) -> bool:
        promised = [each for each in self._line[place:] if each.promised]
        return not promised or spares(promised, self._without, self._ends(place), self._at)

    @cached_property
    def _without(self) -> dict[str, float]:
        return dict(ends(self._line, self._at, self._places, self._times))

    def _ends(self, place: int) -> Iterator[tuple[str, float]]:
        nearest = max(each for each in self._reached if each <= place)
        at, before = self._reached[nearest]
        ahead = [*before, *self._line[nearest:place]]
        *_, (at, before, _) = run_ahead(ahead, at, self._places, self._times, least=self._places)
        self._reached[place] = at, before
        return ends([*before, self._new, *self._line[place:]], at, self._places, self._times)
