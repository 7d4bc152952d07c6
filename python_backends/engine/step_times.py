"""How long a denoising step takes, learnt from those that were taken. Needs no torch."""

from __future__ import annotations

import math
from bisect import bisect_left, insort

WEIGHT, OUTLIER = 0.2, 4.0
"""Of the latest step in a running mean, and the most of it that counts, in times of the mean: a machine's pace changes,
single steps are noise."""

STALE_STEPS = 25
"""What no step has measured for so long follows the pace of those that do, and takes no longer than more work does."""


class StepTimes:
    """Seconds of a step by its work: rows × pixels, all rows of all requests that share it.

    What was never measured lies on the line through its neighbours; beyond them too, as long as that is between no
    growth at all and growth with the work.
    """

    def __init__(self, falls: float = WEIGHT) -> None:
        """Knows nothing.

        Args:
            falls: Weight of a step that was faster than the mean.
        """
        self._falls = falls
        self._works: list[int] = []
        self._means: dict[int, float] = {}
        self._noted: dict[int, int] = {}
        self._steps = 0
        self._measured_at: dict[int, float] = {}
        self._asked: dict[int, float] = {}  # since the last step: a line is run ahead with few works, many times

    def guess(self, work: int, seconds: float) -> None:
        """A step of so much work should take so long: it was measured, but not as a step."""
        self.note(work, seconds)
        self._measured_at[work], self._noted[work] = -math.inf, 0

    def note(self, work: int, seconds: float) -> None:
        """A step of so much work took so long."""
        before = self.expected(work)
        if work not in self._means:
            insort(self._works, work)
        noted = self._noted.get(work, 0) + 1
        mean = self._means.get(work, 0.0)
        if noted > 1:
            seconds = min(seconds, OUTLIER * mean)
        weight = self._falls if seconds < mean else WEIGHT
        self._means[work] = mean + max(weight, 1 / noted) * (seconds - mean)
        self._noted[work] = min(noted, round(1 / WEIGHT))
        self._steps += 1
        self._measured_at[work] = self._steps
        for other in self._works if before else ():
            if self._is_stale(other) and self._nearest_measured(other) == work:
                self._means[other] *= self._means[work] / before
                if other < work:
                    self._means[other] = min(self._means[other], self._means[work])
        self._asked.clear()

    def _is_stale(self, work: int) -> bool:
        return self._steps - self._measured_at[work] > STALE_STEPS

    def _nearest_measured(self, work: int) -> int | None:
        measured = [each for each in self._works if not self._is_stale(each)]
        return min(measured, key=lambda each: abs(math.log(each / work)), default=None)

    def expected(self, work: int) -> float:
        """Seconds that a step of so much work should take; 0 while nothing is known."""
        known = self._asked.get(work)
        if known is None:
            known = self._asked[work] = self._estimate(work)
        return known

    def _estimate(self, work: int) -> float:
        if work in self._means or not self._means:
            return self._means.get(work, 0.0)
        works = self._works
        nearest = works[0] if work < works[0] else works[-1]
        constant, proportional = self._means[nearest], self._means[nearest] * work / nearest
        if len(works) == 1:
            return proportional
        right = min(max(bisect_left(works, work), 1), len(works) - 1)
        low, high = works[right - 1], works[right]
        slope = (self._means[high] - self._means[low]) / (high - low)
        line = self._means[low] + slope * (work - low)
        return line if low < work < high else sorted((constant, line, proportional))[1]
