"""A shard's line and its running ahead: who shares the next step, for how long that stays so, when everybody is done.

The line is in order, and its first share a step: as many as there are places for, and as promises allow. A run joins
them only where each promise before it would be kept if all the rest of its steps took as long as the next. Hence
whoever comes later makes no promise late, and nobody is passed by. Needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from .step_times import StepTimes

SAFETY = 1.125
"""Times a forecast is what a promise has to leave room for. Where single steps vary by ±20 % and a quarter longer ones
come in spells of a hundred, 95 of 100 runs are in time under every load, without it 86."""

ROUNDING_S = 1e-6
"""By which sums of seconds of the clock may be wrong, and more."""

OVERTAKEN_AT_MOST = 2
"""Times, in all."""


@dataclass(eq=False, slots=True)
class Queued:
    """A run in line, or a claim to be one.

    Attributes:
        run: Its id; a claim's until a run is submitted under it.
        work: Of a step, as `StepTimes` counts it.
        control_work: The same of ControlNets.
        steps: Left.
        due: Promised, in seconds of the clock; infinite without a promise.
        rank: Who has a higher one overtakes.
        started: Whether it has taken a step.
        overtaken: How often.
        expires: When a claim goes; infinite for a run.
    """

    run: str
    work: int
    control_work: int
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

    def copy(self) -> Queued:
        """One to be run ahead; several times as fast as `dataclasses.replace`."""
        return Queued(
            self.run,
            self.work,
            self.control_work,
            self.steps,
            self.due,
            self.rank,
            self.started,
            self.overtaken,
            self.expires,
        )

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
        slack = self.due - now
        if not 0 < self.steps * alone_s <= slack < self.steps * longer_s:
            return 0
        spare, lacking = slack - self.steps * alone_s, self.steps * longer_s - slack
        kept = math.ceil(lacking / (longer_s - step_s)) if longer_s > step_s else math.inf
        lost = math.floor(spare / (step_s - alone_s)) + 1 if step_s > alone_s else math.inf
        return min(kept, lost)


class Stretch(NamedTuple):
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
    work, control_work, runs, steps, budget, step_s = 0, 0, 0, math.inf, math.inf, 0.0
    for each in line[:places]:
        longer_s = expected(work + each.work, control_work + each.control_work)
        if SAFETY * longer_s > budget:
            break
        work, control_work = work + each.work, control_work + each.control_work
        runs, step_s = runs + 1, longer_s
        if each.steps < steps:
            steps = each.steps
        if each.due - now < each.steps * budget:
            budget = min(budget, each.budget(now, expected(each.work, each.control_work)))
    if runs < min(places, len(line)):
        longer_s *= SAFETY
        tight = [each for each in line[:runs] if each.due - now < each.steps * longer_s]
        alone = [expected(each.work, each.control_work) for each in tight]
        objections = [each.objects(now, step_s, longer_s, alone_s) for each, alone_s in zip(tight, alone, strict=True)]
        steps = min(steps, max([1, *objections]))
    return Stretch(runs, step_s, int(max(0, steps)))


def run_ahead(
    line: Iterable[Queued], now: float, places: int, times: StepTimes, until: float = math.inf, least: int = 1
) -> Iterator[tuple[float, list[Queued], list[str]]]:
    """What becomes of a line if nobody comes: as it is, then after every stretch.

    Args:
        line: In order; stays as it is.
        now: Seconds of the clock.
        places: Most that share a step.
        times: What steps take.
        until: The last step begins before.
        least: Nobody steps while fewer are in line.

    Yields:
        When the stretch ends, who is in line then, and who is done with it. The line is the same list every time.
    """
    left = [each.copy() for each in line]
    yield now, left, []
    while len(left) >= least and now < until:
        runs, step_s, steps = next_stretch(left, now, places, times)
        if until < math.inf and step_s > 0:
            steps = min(steps, math.ceil((until - now) / step_s))
        now += steps * step_s
        done = []
        for each in left[:runs]:
            each.started = True
            each.steps -= steps
            if each.steps <= 0:
                done.append(each.run)
                left.remove(each)
        yield now, left, done


def ends(line: Iterable[Queued], now: float, places: int, times: StepTimes) -> Iterator[tuple[str, float]]:
    """Who is done when if nobody comes, the first first."""
    return ((run, end) for end, _, done in run_ahead(line, now, places, times) for run in done)


def begun(line: Sequence[Queued], sharing: Collection[Queued]) -> list[Queued]:
    """The line when these take a step: who has begun is before those who have not."""
    return sorted(line, key=lambda each: not (each.started or each in sharing))


def spares(
    others: Iterable[Queued], before: Mapping[str, float], after: Iterable[tuple[str, float]], now: float
) -> bool:
    """Whether every promise that would be kept still is, with `SAFETY`, or no later than it would be anyway."""
    latest = {
        each.run: max(before[each.run], now + (each.due - now) / SAFETY)
        for each in others
        if each.promised and before[each.run] <= each.due
    }
    for run, end in after if latest else ():
        if end > latest.pop(run, math.inf):
            return False
        if not latest:
            break
    return True
