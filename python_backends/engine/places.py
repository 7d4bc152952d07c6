"""What a shard says to those who ask for a place in its line: what its desk does, and what help of idle shards changes.

Needs no torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .line import SAFETY
from .messages import Quoted

if TYPE_CHECKING:
    from .desk import Desk
    from .messages import Claim, Claimed, Work
    from .step_times import StepTimes

PROBED_AFTER_S = 3.0
"""What steps took so long ago is no reason to refuse a run that would usually be in time."""


class Places:
    """Places in the line of a shard that has others beside it."""

    def __init__(self, desk: Desk, times: StepTimes, others: int) -> None:
        """Has said nothing yet.

        Args:
            desk: The line.
            times: What steps take.
            others: Shards beside this one.
        """
        self._desk, self._times, self._others = desk, times, others

    def quote(self, work: Work) -> Quoted:
        """When such a run would be done."""
        return Quoted(self._desk.quote(work), self._helped(work, self._others), self._desk.in_line)

    def claim(self, asked: Claim, measured_s: float) -> Claimed:
        """A place for such a run, if it would be done in time.

        An empty shard gives one without a promise to a run that would be late without helpers, whom others may claim;
        and to one that would be late now and would not be usually, once it has measured nothing for a while: while all
        are refused it would measure nothing.

        Args:
            asked: The run.
            measured_s: Seconds since the last step.
        """
        work, limit_s, probed_in_s = asked.work, asked.limit_s, 0.0
        idle = not self._desk.in_line
        helped = self._helped(work, asked.helpers) if asked.helpers and idle else None
        if limit_s is not None and idle and SAFETY * self._desk.quote(work) > limit_s:
            usually = SAFETY * self._desk.at_best(_share(work, asked.helpers)) < limit_s
            probed_in_s = PROBED_AFTER_S - measured_s if usually else 0.0
            has_help = helped is not None and SAFETY * helped <= limit_s
            if has_help or (usually and probed_in_s <= 0):
                limit_s = None
        best_s = self._desk.at_best(_share(work, self._others))
        answer = self._desk.claim(work, limit_s, asked.hold_s, best_s)
        if answer.id is None and answer.retry_after_s is not None:
            answer = replace(answer, retry_after_s=max(answer.retry_after_s, probed_in_s))
        return answer if helped is None else replace(answer, forecast_s=helped)

    def _helped(self, work: Work, helpers: int) -> float:
        """Seconds of a run that is alone and has its rows spread over other shards too."""
        share = _share(work, helpers)
        return work.steps * self._times.expected(share.of_a_step, share.control_work)


def _share(work: Work, helpers: int) -> Work:
    """What is left of a run's work for the fullest of the shards that share it."""
    shards = min(work.rows, 1 + helpers)
    return replace(work, rows=-(-work.rows // shards), control_rows=-(-work.control_rows // shards))
