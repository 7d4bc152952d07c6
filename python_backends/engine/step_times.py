"""How long a denoising step takes, learnt from those that were taken. Needs no torch."""

from __future__ import annotations

WEIGHT = 0.2
"""Of the latest step in a running mean: a machine's pace changes, single steps are noise."""


class StepTimes:
    """Seconds of a step by its work: rows × pixels, all rows of all requests that share it.

    What was never measured is interpolated between neighbours, and beyond them taken to grow with the work.
    """

    def __init__(self) -> None:
        self._means: dict[int, float] = {}

    def note(self, work: int, seconds: float) -> None:
        """A step of so much work took so long."""
        known = self._means.get(work)
        self._means[work] = seconds if known is None else known + WEIGHT * (seconds - known)

    def expected(self, work: int) -> float:
        """Seconds that a step of so much work should take; 0 while nothing is known."""
        if work in self._means or not self._means:
            return self._means.get(work, 0.0)
        below = max((each for each in self._means if each < work), default=None)
        above = min((each for each in self._means if each > work), default=None)
        if below is not None and above is not None:
            share = (work - below) / (above - below)
            return (1 - share) * self._means[below] + share * self._means[above]
        nearest = above if below is None else below
        assert nearest is not None
        return self._means[nearest] * work / nearest
