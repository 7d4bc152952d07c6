"""What a shard says to those who ask for a place in its line: what its desk does, and what help of idle shards changes.

Needs no torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .line import SAFETY
from .messages import Quoted

if TYPE_CHECKING:
    from collections.abc import Callable

    from .desk import Desk
    from .messages import Claim, Claimed
    from .work import Work

PROBED_AFTER_S = 3.0
"""What steps took so long ago is no reason to refuse a run that would usually be in time."""

DOUBTED_AFTER_S, DOUBT = 60.0, 4.0
"""What steps usually took so long ago may be so many times of what they would take."""

CALM_S = 1.0
"""When to try again where the other stages take too long."""


class Places:
    """Places in the line of a shard that has others beside it."""

    def __init__(self, desk: Desk, others: int, weighed: Callable[[Work], Work] = lambda work: work) -> None:
        """Has said nothing yet.

        Args:
            desk: The line.
            others: Shards beside this one.
            weighed: Of what a run asks makes what that is here.
        """
        self._desk, self._others, self._weighed = desk, others, weighed

    def quote(self, work: Work) -> Quoted:
        """When such a run would be done."""
        work, desk = self._weighed(work), self._desk
        alone_s = desk.alone(work.shared(self._others))
        return Quoted(desk.quote(work), alone_s, desk.in_line, desk.empty_in_s, desk.alone(work))

    def claim(self, asked: Claim, measured_s: float) -> Claimed:
        """A place for such a run, if it would be done in time.

        While nobody is in line it is given without a promise to who would be in time with the help of others; and, if
        nothing was measured for a while, to who would be at the usual pace: as long as all are refused nothing is.

        Args:
            asked: The run.
            measured_s: Seconds since the last step, or evaluation for another shard.
        """
        asked = replace(asked, work=self._weighed(asked.work))
        helped, limit_s, idle = asked.work.shared(asked.helpers), asked.limit_s, not self._desk.in_line
        if limit_s is not None and idle and SAFETY * self._desk.alone(asked.work) > limit_s:
            in_time_with_help = SAFETY * self._desk.alone(helped) <= limit_s
            if in_time_with_help or self._is_worth_a_try(helped, limit_s, measured_s):
                limit_s = None
        answer = self._desk.claim(asked.work, limit_s, asked.hold_s)
        if answer.id is None and answer.retry_after_s is None:
            answer = replace(answer, retry_after_s=self._again(asked, helped, measured_s if idle else 0.0))
        return replace(answer, forecast_s=self._desk.alone(helped)) if idle and helped != asked.work else answer

    def _is_worth_a_try(self, helped: Work, limit_s: float, measured_s: float) -> bool:
        at_best_s = self._desk.at_best(helped)
        if measured_s >= DOUBTED_AFTER_S and at_best_s <= DOUBT * limit_s:
            return True
        return measured_s >= PROBED_AFTER_S and SAFETY * at_best_s <= limit_s

    def _again(self, asked: Claim, helped: Work, measured_s: float) -> float | None:
        """Seconds until somebody should be in time who would be late even alone; None for never."""
        desk, limit_s, loosest_s = self._desk, asked.limit_s, asked.loosest_s
        with_all = asked.work.shared(self._others)
        if limit_s is None or loosest_s is None or SAFETY * desk.at_best(with_all) > loosest_s:
            return None
        empty_in_s = desk.empty_in_s
        helped_in_s = max(empty_in_s, asked.helped_in_s)
        probed_in_s = empty_in_s + max(0.0, PROBED_AFTER_S - measured_s)
        ways = (
            (desk.alone(helped), empty_in_s),
            (desk.alone(with_all), helped_in_s),
            (desk.at_best(helped), probed_in_s),
            (desk.at_best(with_all), max(helped_in_s, probed_in_s)),
        )
        return min(
            after_s if SAFETY * takes_s <= limit_s else max(after_s, CALM_S)
            for takes_s, after_s in ways
            if SAFETY * takes_s <= loosest_s
        )
