"""A desk whose shard takes steps on a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from swiftdiffusion.python_backends.engine.desk import Desk
from swiftdiffusion.python_backends.engine.messages import Claimed
from swiftdiffusion.python_backends.engine.step_times import StepTimes
from swiftdiffusion.python_backends.engine.work import Work

RESOLUTION_S = 0.25
TEN = Work(2, 1, 10)


@dataclass(frozen=True)
class Pace:
    """Whole seconds of a step, so that every time of a test is exact."""

    each: int = 0
    of_a_row: int = 1
    of_a_control_row: int = 1

    def __call__(self, work: int, control_work: int = 0) -> float:
        return float(self.each + self.of_a_row * work + self.of_a_control_row * control_work)

    def learnt(self) -> StepTimes:
        """After steps of every work, and with ControlNets of every work."""
        times = StepTimes()
        for work in range(1, 64):
            times.note(work, self(work))
        for control_work in range(1, 64):
            times.note(1, self(1, control_work), control_work)
        return times


class SteppedShard:
    """Runs what is submitted, step by step, as an engine does.

    Attributes:
        desk: Its line.
        now: Seconds of its clock.
        begun: Run → when its first step began, in the order of their arrival.
        ended: Run → when its last step ended.
        due: Run → its promise.
    """

    def __init__(
        self,
        seconds: Callable[[int, int], float],
        times: StepTimes,
        places: int = 4,
        longest: int = 64,
        learns: bool = False,
    ) -> None:
        """Has no run.

        Args:
            seconds: Of a step by its work, and that of ControlNets.
            times: What the desk expects.
            places: Most runs in a step.
            longest: Of the line.
            learns: Whether steps are noted.
        """
        self.now = 0.0
        self.desk = Desk(places, times, lambda: self.now, longest)
        self.begun: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.due: dict[str, float] = {}
        self.seconds, self._times, self._learns = seconds, times, learns
        self.works: dict[str, Work] = {}
        self._left: dict[str, int] = {}
        self._step: tuple[list[str], float, float] | None = None
        self._names = (f"run {number}" for number in count())

    def come(self, work: Work, limit_s: float | None = None) -> Claimed:
        """Somebody claims, and submits at once if that is accepted."""
        answer = self.desk.claim(work, limit_s)
        if answer.id is not None:
            run = self.submit(work, answer.id)
            if limit_s is not None:
                self.due[run] = self.now + limit_s
        return answer

    def submit(self, work: Work, claim: str | None = None) -> str:
        """A run enters; its name."""
        run = next(self._names)
        self.desk.enter(run, work, claim)
        self.works[run], self._left[run] = work, work.steps
        return run

    def pass_time(self, seconds: float) -> None:
        """Steps are taken, the last of them maybe not to its end."""
        until = self.now + seconds
        while self._step is not None or self._begin(until):
            assert self._step is not None
            if self._step[2] > until:
                break
            self._end(*self._step)
        self.now = until

    def empty(self) -> None:
        """Runs until nobody is left."""
        while self._left:
            self.pass_time(1000.0)

    def _work(self, runs: list[str]) -> tuple[int, int]:
        works = [self.works[run] for run in runs]
        return sum(work.of_a_step for work in works), sum(work.control_work for work in works)

    def _begin(self, until: float) -> bool:
        """Begins a step, as soon as somebody can take one."""
        while not (runs := self.desk.batch(self._left.keys())):
            if not self._left or self.now >= until:
                return False
            self.now = min(until, self.now + RESOLUTION_S)  # for who has claimed and not submitted yet
        for run in runs:
            self.begun.setdefault(run, self.now)
        self._step = runs, self.now, self.now + self.seconds(*self._work(runs))
        return True

    def _end(self, runs: list[str], began: float, ended: float) -> None:
        self.now, self._step = ended, None
        if self._learns:
            work, control_work = self._work(runs)
            self._times.note(work, ended - began, control_work)
        self.desk.stepped(runs)
        for run in runs:
            self._left[run] -= 1
            if not self._left[run]:
                del self._left[run]
                self.desk.leave(run)
                self.ended[run] = ended


def shard(pace: Pace = Pace(), places: int = 4, longest: int = 64) -> SteppedShard:
    """An idle one that knows its pace."""
    return SteppedShard(pace, pace.learnt(), places, longest)


def accepted(answer: Claimed) -> Claimed:
    """The answer, which has to be a place."""
    assert answer.id is not None, answer
    return answer


def refused(answer: Claimed) -> Claimed:
    """The answer, which has to be none."""
    assert answer.id is None, answer
    return answer
