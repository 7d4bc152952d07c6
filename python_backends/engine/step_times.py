"""How long a denoising step takes, learnt from those that were taken. Needs no torch."""

from __future__ import annotations

import math
from bisect import bisect_left, insort

WEIGHT, OUTLIER = 0.2, 4.0
"""Of the latest step in a running mean, and the most of it that counts, in times of the mean: a machine's pace changes,
single steps are noise."""

STALE_STEPS = 25
"""What no step has measured for so long follows the pace of those that do, and takes no longer than more work does."""

USUAL_FALLS, USUAL_S = 0.1, 60.0
"""Of what steps usually take: the weight of a faster one, and for how many seconds they have to be slower until that is
usual. A burst that slows a machine down changes little."""

LEAST_LONGER = 1 / 64
"""Of a step with ControlNets, that counts as theirs at least: means grow by factors."""

SURELY_LESS = 0.75
"""A step with ControlNets that takes less than so much of what its UNet should tells of that."""


class WorkTimes:
    """Seconds by work: rows × pixels, all rows of all requests that share a step.

    What was never measured lies on the line through its neighbours; beyond them too, as long as that is between no
    growth at all and growth with the work.
    """

    def __init__(self, falls: float = WEIGHT, settles_s: float = 0.0) -> None:
        """Knows nothing.

        Args:
            falls: Weight of a step that was faster than the mean.
            settles_s: Seconds of slower steps until their pace is the mean; 0: each has `WEIGHT`.
        """
        self._falls, self._settles_s = falls, settles_s
        self._works: list[int] = []
        self._means: dict[int, float] = {}
        self._noted: dict[int, float] = {}
        self._steps = 0
        self._measured_at: dict[int, float] = {}
        self._asked: dict[int, float] = {}  # since the last step: a line is run ahead with few works, many times

    def guess(self, work: int, seconds: float, steps: float = 0) -> None:
        """A step of so much work should take so long: it was measured, but not as a step, and weighs like so many."""
        self.note(work, seconds)
        self._measured_at[work], self._noted[work] = -math.inf, steps

    def note(self, work: int, seconds: float) -> None:
        """A step of so much work took so long."""
        before = self.expected(work)
        if work not in self._means:
            insort(self._works, work)
        noted = self._noted.get(work, 0) + 1
        mean = self._means.get(work, 0.0)
        if noted > 1:
            seconds = min(seconds, OUTLIER * mean)
        rises = min(1.0, seconds / self._settles_s) if self._settles_s else WEIGHT
        weight = self._falls if seconds < mean else rises
        self._means[work] = mean + max(weight, 1 / noted) * (seconds - mean)
        self._noted[work] = noted
        self._steps += 1
        self._measured_at[work] = self._steps
        for other in self._works if before else ():
            if self._is_stale(other) and self._nearest_measured(other) == work:
                self._means[other] *= self._means[work] / before
                if other < work:
                    self._means[other] = min(self._means[other], self._means[work])
        self._asked.clear()

    def __contains__(self, work: int) -> bool:
        """Whether steps of so much work are known."""
        return work in self._means

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


class StepTimes:
    """Seconds of a step: of its UNet evaluations by their work, and how much longer it takes beside ControlNets.

    The latter by their own work: rows × pixels of all that they evaluate. Both as they are now and as they usually are.
    """

    def __init__(self) -> None:
        self._unet, self._usual_unet = WorkTimes(), WorkTimes(USUAL_FALLS, USUAL_S)
        self._longer, self._usual_longer = WorkTimes(), WorkTimes(USUAL_FALLS, USUAL_S)

    def guess(self, work: int, seconds: float) -> None:
        """A step of so much work should take so long: it was measured, but not as a step."""
        self._unet.guess(work, seconds)
        self._usual_unet.guess(work, seconds, math.inf)

    def note(self, work: int, seconds: float, control_work: int = 0) -> None:
        """A step took so long.

        Args:
            work: Of the UNet.
            seconds: What it took.
            control_work: Of ControlNets.
        """
        alone = self._unet.expected(work)
        if not control_work or seconds < SURELY_LESS * alone:
            _note(self._unet, self._usual_unet, work, seconds)
        if control_work:
            longer = max(seconds - self._unet.expected(work), LEAST_LONGER * seconds)
            _note(self._longer, self._usual_longer, control_work, longer)

    def knows(self, work: int, control_work: int = 0) -> bool:
        """Whether such steps were measured."""
        return work in self._unet and (not control_work or control_work in self._longer)

    def expected(self, work: int, control_work: int = 0) -> float:
        """Seconds that such a step should take now; 0 while nothing is known."""
        seconds = self._unet.expected(work)
        return seconds + self._longer.expected(control_work) if control_work else seconds

    def at_best(self, work: int, control_work: int = 0) -> float:
        """The same when nothing makes this machine slower than it usually is."""
        seconds = min(self._unet.expected(work), self._usual_unet.expected(work))
        if control_work:
            seconds += min(self._longer.expected(control_work), self._usual_longer.expected(control_work))
        return seconds


def _note(now: WorkTimes, usual: WorkTimes, work: int, seconds: float) -> None:
    """The first step of some work may set up, or come in a burst: usual is no more than what was expected of it."""
    if work not in usual:
        expected = [each for each in (now.expected(work), usual.expected(work)) if each]
        usual.guess(work, min([seconds, *expected]), math.inf)
    now.note(work, seconds)
    usual.note(work, seconds)
