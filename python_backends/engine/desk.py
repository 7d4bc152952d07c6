"""A shard's desk: who is in line, who takes the next step, when somebody new would be done, and what is promised.

Needs no torch.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from dataclasses import replace
from secrets import token_hex
from typing import TYPE_CHECKING

from ..request.completed import PRIORITIES
from .claims import CLAIM_S, Crowd
from .joining import Joining
from .line import ROUNDING_S, SAFETY, Queued, begun, ends, next_stretch, run_ahead, spares
from .messages import Claimed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from .joining import Outlook
    from .step_times import StepTimes
    from .work import Work

RESTARTED = len(PRIORITIES)
"""The rank of a run that was in line before, elsewhere: it has waited longest."""

RESOLUTION_S = 0.001
"""Of times to try again, which clients are told in milliseconds."""

RETRY_PARTS = 16
"""Of the time until the line is empty: how closely the soonest to try again is sought. Each halving runs the line ahead
once more, while whoever asks waits for the answer."""


class Desk:
    """The line of one shard: first come, first served.

    A higher priority overtakes a lower one that waits, unless that breaks a promise; nobody is overtaken more than
    twice. A promise holds against whoever comes later. It cannot against those before it, where they are slower than
    expected, leave early and let in others, or are not there when it is their turn.
    """

    def __init__(
        self, places: int, times: StepTimes, clock: Callable[[], float] = time.monotonic, longest: int = 64
    ) -> None:
        """An empty line.

        Args:
            places: Most runs that share a step.
            times: What steps take.
            clock: Seconds.
            longest: Claims are accepted while fewer are in line.
        """
        self._places, self._times, self._clock, self._longest = places, times, clock, longest
        self._line: list[Queued] = []
        self._crowd = Crowd()
        self._stepping: list[str] = []
        self._boundary = 0.0

    def claim(self, work: Work, limit_s: float | None = None, hold_s: float = CLAIM_S) -> Claimed:
        """A place for a run that is about to be submitted.

        Args:
            work: The run's.
            limit_s: Seconds from now in which its last step has to end: whoever claims takes off what comes before and
                after the steps.
            hold_s: How long the place is kept.

        Returns:
            Without a time to try again for who would be late even alone: `Places` knows more.
        """
        now, limit = self._now(), math.inf if limit_s is None else limit_s
        new = self._queued(token_hex(8), work, now + limit)
        outlook = self._outlook(*self._at_boundary(now), new)
        admitted = self._admits(new, outlook, now, limit)
        if admitted and len(self._line) < self._longest:
            new.expires = now + hold_s
            self._insert(new, outlook.overtakes)
            return Claimed(new.run, outlook.end - now)
        alone = self.alone(work)
        if SAFETY * alone > limit:
            return Claimed(None, outlook.end - now)
        if not admitted:
            self._crowd.note(now, alone, limit / alone)
        return Claimed(None, outlook.end - now, self._retry_after(new, outlook, now, limit))

    def alone(self, work: Work) -> float:
        """Seconds that a run would take if nobody else were in line."""
        return work.steps * self._times.expected(work.of_a_step, work.control_work)

    def at_best(self, work: Work) -> float:
        """The same when nothing makes the shard slower than it usually is."""
        return work.steps * self._times.at_best(work.of_a_step, work.control_work)

    @property
    def empty_in_s(self) -> float:
        """Seconds until nobody is in line, if nobody comes."""
        now = self._now()
        return max(self._leave(now)) - now

    @property
    def in_line(self) -> int:
        """Rows × pixels of all that are."""
        self._now()
        return sum(each.work for each in self._line)

    @property
    def counts(self) -> tuple[int, int]:
        """Runs and claims that have not begun, and runs that have."""
        begun = sum(each.started for each in self._line)
        return len(self._line) - begun, begun

    def quote(self, work: Work) -> float:
        """Seconds until a run that came now would be done: the line, run ahead."""
        now = self._now()
        return self._outlook(*self._at_boundary(now), self._queued("", work)).end - now

    def enter(self, run: str, work: Work, claim_id: str | None = None, restarted: bool = False) -> None:
        """A run takes up its claim, or a place without a promise.

        Args:
            run: Its id.
            work: The run's.
            claim_id: Its claim; of one that is not known here, or not any more, nothing is left.
            restarted: Whether it was in line before, elsewhere: that brings it before all that wait, as far as their
                promises and `OVERTAKEN_AT_MOST` allow.
        """
        now = self._now()
        for each in self._line:
            if each.run == claim_id:
                each.run, each.steps, each.expires = run, work.steps, math.inf
                each.work, each.control_work = work.of_a_step, work.control_work
                return
        new = self._queued(run, work)
        if restarted:
            new.rank = RESTARTED
        self._insert(new, self._outlook(*self._at_boundary(now), new).overtakes)

    def leave(self, run: str) -> None:
        """A run is done, or given up; or a claim is."""
        self._line = [each for each in self._line if each.run != run]

    def batch(self, able: Collection[str]) -> list[str]:
        """Those of the runs that can step which take the next one; a run that waits for a LoRA takes no place."""
        now = self._now()
        sharing = [each for each in self._line if each.run in able]
        if sharing and any(each.promised for each in self._line):
            stretch = next_stretch(sharing, now, self._places, self._times)
            sharing = self._sparing_claims(sharing[: stretch.runs], now)
        sharing = sharing[: self._places]
        self._line = begun(self._line, sharing)
        for each in sharing:
            each.started = True
        self._stepping = [each.run for each in sharing]
        work, control_work = sum(each.work for each in sharing), sum(each.control_work for each in sharing)
        self._boundary = now + self._times.expected(work, control_work)
        return self._stepping

    def stepped(self, runs: Iterable[str]) -> None:
        """These have taken a step."""
        those = set(runs)
        for each in self._line:
            each.steps -= each.run in those
        self._stepping = []

    @staticmethod
    def _queued(run: str, work: Work, due: float = math.inf) -> Queued:
        rank = PRIORITIES.index(work.priority)
        return Queued(run, work.of_a_step, work.control_work, work.steps, due, rank)

    def _now(self) -> float:
        """The time; claims that have expired by then are gone."""
        now = self._clock()
        self._line = [each for each in self._line if each.expires > now]
        return now

    def _at_boundary(self, now: float) -> tuple[float, list[Queued]]:
        """When the step ends that runs now, if one does, and who should be in line then."""
        if not self._stepping:
            return now, self._line
        line = [replace(each, steps=each.steps - (each.run in self._stepping)) for each in self._line]
        return max(now, self._boundary), [each for each in line if each.steps > 0]

    def _ends(self, line: Sequence[Queued], at: float) -> dict[str, float]:
        return dict(ends(line, at, self._places, self._times))

    def _leave(self, now: float) -> list[float]:
        """When everybody is done who is in line, the first first; this moment if the line is empty."""
        at, line = self._at_boundary(now)
        return [at] * (len(self._line) - len(line)) + [*self._ends(line, at).values()] or [now]

    def _ahead(self, line: Sequence[Queued], at: float, until: float) -> tuple[float, list[Queued]]:
        *_, (at, left, _) = run_ahead(line, at, self._places, self._times, until)
        return at, left

    def _joining(self, at: float, line: Sequence[Queued], new: Queued) -> Joining:
        return Joining(line, at, new, self._places, self._times)

    def _outlook(self, at: float, line: Sequence[Queued], new: Queued) -> Outlook:
        joining = self._joining(at, line, new)
        return joining.outlook(joining.place())

    def _insert(self, new: Queued, overtakes: int) -> None:
        place = len(self._line) - overtakes
        for each in self._line[place:]:
            each.overtaken += 1
        self._line.insert(place, new)

    def _sparing_claims(self, sharing: list[Queued], now: float) -> list[Queued]:
        """Without those that have not begun and must not yet: an earlier run has claimed its time, and is to come."""
        claims = [each for each in self._line if each.promised and each.expires < math.inf]
        before = self._ends(self._line, now) if claims else {}
        while claims and (line := begun(self._line, sharing)) != self._line:
            if spares(claims, before, ends(line, now, self._places, self._times), now):
                break
            sharing = sharing[:-1]
        return sharing

    def _admits(self, new: Queued, outlook: Outlook, now: float, limit: float) -> bool:
        """Whether a run would be in time, and may wait if it has to."""
        if SAFETY * (outlook.end - now) > limit + ROUNDING_S:
            return False
        alone = new.steps * self._times.expected(new.work, new.control_work)
        return outlook.begins or not alone or not self._crowd.forbids_waiting(now, limit / alone)

    def _retry_after(self, new: Queued, outlook: Outlook, now: float, limit: float) -> float:
        """Seconds until a claim that is refused now, and could be met alone, should be accepted."""
        leave = self._leave(now)
        soonest = outlook.end - now - limit / SAFETY  # who comes while it would wait anyway is done no later
        if len(leave) >= self._longest:
            soonest = max(soonest, leave[len(leave) - self._longest] - now)
        soonest = max(0.0, soonest) + RESOLUTION_S
        at, line = self._at_boundary(now)
        at, line = self._ahead(line, at, until=now + soonest)

        def accepted(wait: float) -> bool:
            then, later = now + wait, replace(new, due=new.due + wait)
            boundary, left = self._ahead(line, at, until=then)
            joining = self._joining(max(boundary, then), left, later)
            at_best = joining.outlook(joining.first())
            if not self._admits(later, at_best, then, limit):
                return False
            return self._admits(later, joining.outlook(joining.place()), then, limit)

        if limit == math.inf or accepted(soonest):
            return soonest
        part = max(0.0, max(at, *leave) - now - soonest) / RETRY_PARTS
        return soonest + part * bisect_left(range(RETRY_PARTS), True, 1, key=lambda n: accepted(soonest + n * part))
