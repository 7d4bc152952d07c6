"""A shard's line and its running ahead: who shares the next step, for how long that stays so, when everybody is done.

The line is in order, and its first share a step: as many as there are places for, and as promises allow. A run joins
them only where each promise before it would be kept if all the rest of its steps took as long as the next. Hence
whoever comes later makes no promise late, and nobody is passed by. Needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from .step_times import StepTimes

SAFETY = 1.125
"""Times a forecast is what a promise has to leave room for. Where single steps vary by ±20 % and a quarter longer ones
come in spells of a hundred, 95 of 100 runs are in time under every load, without it 86."""

OVERTAKEN_AT_MOST = 2
"""Times, in all."""


@dataclass(eq=False, slots=True)
class Queued:
    """A run in line, or a claim to be one.

    Attributes:
        run: Its id; a claim's until a run is submitted under it.
        work: Of a step, as `StepTimes` counts it.
        steps: Left.
        due: Promised, in seconds of the clock; infinite without a promise.
        rank: Who has a higher one overtakes.
        started: Whether it has taken a step.
        overtaken: How often.
        expires: When a claim goes; infinite for a run.
    """

    run: str
    work: int
    steps: int
    due: float = math.inf
    rank: int = 0
    started: bool = False
    overtaken: int = 0
    expires: float = math.inf

    @property
    def promised(self) -> bool:
        """Whether it has a promise."""
        return self.due < math.inf

    def gives_way(self, other: Queued) -> bool:
        """Whether somebody new may overtake it."""
        return not self.started and self.rank < other.rank and self.overtaken < OVERTAKEN_AT_MOST

    def budget(self, now: float, alone_s: float) -> float:
        """Seconds that each of its steps may take; infinite without a promise, or with one that cannot be kept.

        Args:
            now: Seconds of the clock.
            alone_s: Of a step without others.
        """
        slack = self.due - now
        return slack / self.steps if 0 < self.steps * alone_s <= slack else math.inf

    def objects(self, now: float, step_s: float, longer_s: float, alone_s: float) -> float:
        """For how many steps its promise forbids longer ones; 0 if it does not.

        Args:
            now: Seconds of the clock.
            step_s: Of a step as it is.
            longer_s: What a step must not take, with `SAFETY`.
            alone_s: Of a step without others.
        """
        if longer_s <= self.budget(now, alone_s):
            return 0
        slack = self.due - now
        spare, lacking = slack - self.steps * alone_s, self.steps * longer_s - slack
        kept = math.ceil(lacking / (longer_s - step_s)) if longer_s > step_s else math.inf
        lost = math.floor(spare / (step_s - alone_s)) + 1 if step_s > alone_s else math.inf
        return min(kept, lost)


_VALUES = attrgetter(*Queued.__slots__)  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps that the first of a line share.

    Attributes:
        runs: How many they are.
        step_s: What a step should take.
        steps: For which nobody else joins, and nobody is done before the last.
    """

    runs: int
    step_s: float
    steps: int


def next_stretch(line: Sequence[Queued], now: float, places: int, times: StepTimes) -> Stretch:
    """Who shares the next steps of a line that is not empty.

    Args:
        line: In order.
        now: Seconds of the clock.
        places: Most that share a step.
        times: What steps take.
    """
    expected = times.expected
    work, runs, steps, budget = 0, 0, math.inf, math.inf
    for each in line[:places]:
        if budget < math.inf and (longer_s := SAFETY * expected(work + each.work)) > budget:
            step_s = expected(work)
            objected = max(one.objects(now, step_s, longer_s, expected(one.work)) for one in line[:runs])
            steps = min(steps, max(1, objected))
            break
        work, runs = work + each.work, runs + 1
        if each.steps < steps:
            steps = each.steps
        if each.due < math.inf:
            budget = min(budget, each.budget(now, expected(each.work)))
    return Stretch(runs, expected(work), int(max(0, steps)))


def run_ahead(
    line: Iterable[Queued], now: float, places: int, times: StepTimes, until: float = math.inf
) -> Iterator[tuple[float, list[Queued], list[str]]]:
    """What becomes of a line if nobody comes: as it is, then after every stretch.

    Args:
        line: In order; stays as it is.
        now: Seconds of the clock.
        places: Most that share a step.
        times: What steps take.
        until: The last step begins before.

    Yields:
        When the stretch ends, who is in line then, and who is done with it. The line is the same list every time.
    """
    left = [Queued(*_VALUES(each)) for each in line]
    yield now, left, []
    while left and now < until:
        stretch = next_stretch(left, now, places, times)
        steps = stretch.steps
        if until < math.inf and stretch.step_s > 0:
            steps = min(steps, math.ceil((until - now) / stretch.step_s))
        now += steps * stretch.step_s
        sharing = left[: stretch.runs]
        for each in sharing:
            each.started = True
            each.steps -= steps
        left[: stretch.runs] = [each for each in sharing if each.steps > 0]
        yield now, left, [each.run for each in sharing if each.steps <= 0]


def begun(line: Sequence[Queued], sharing: Collection[Queued]) -> list[Queued]:
    """The line when these take a step: who has begun is before those who have not."""
    return sorted(line, key=lambda each: not (each.started or each in sharing))


def spares(others: Iterable[Queued], before: Mapping[str, float], ends: Iterable[tuple[str, float]], now: float) -> bool:
    """Whether every promise that would be kept still is, with `SAFETY`, or no later than it would be anyway.

    Args:
        others: Whose promises count.
        before: When those that have one would be done anyway.
        ends: When who is done; asked no further than to the first that is too late.
        now: Seconds of the clock.
    """
    latest = {
        each.run: max(before[each.run], now + (each.due - now) / SAFETY)
        for each in others
        if each.promised and before[each.run] <= each.due
    }
    return not latest or all(end <= latest.get(run, math.inf) for run, end in ends)
