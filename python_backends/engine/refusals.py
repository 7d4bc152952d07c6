"""What was refused just now, so that no shard is asked for what is at least as hard. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..request.completed import PRIORITIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from .work import Work

REMEMBERED_S = 0.1
"""At most: runs may leave before their time, which a memory cannot see."""

SAME_S = 0.001
"""Limits that differ by less are the same: clients set them in milliseconds, and what is taken off them for the other
stages is an estimate that drifts."""


@dataclass(frozen=True)
class Refused:
    """No shard would have such a run done in time, or all lines are full.

    Attributes:
        work: The run's.
        limit_s: In which its last step had to end; infinite without a limit.
        alone_s: What it would take without others.
        forecast_s: Seconds until it would be done.
        retry_after_s: Seconds until it should be accepted; infinite for never.
    """

    work: Work
    limit_s: float
    alone_s: float
    forecast_s: float
    retry_after_s: float

    def covers(self, work: Work, limit_s: float) -> bool:
        """Whether such a run is at least as hard to have done in time."""
        return (
            (work.masked, work.masked_steps) == (self.work.masked, self.work.masked_steps)
            and work.rows >= self.work.rows
            and work.pixels >= self.work.pixels
            and work.steps >= self.work.steps
            and sum(work.control_rows) >= sum(self.work.control_rows)
            and max(work.control_rows, default=0) >= max(self.work.control_rows, default=0)
            and PRIORITIES.index(work.priority) <= PRIORITIES.index(self.work.priority)
            and limit_s <= self.limit_s + SAME_S
        )


class Refusals:
    """Those of the last `REMEMBERED_S`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """None yet.

        Args:
            clock: Seconds; may be set back.
        """
        self._clock = clock
        self._noted: list[tuple[float, float, Refused]] = []  # since when, and until when

    def note(self, refused: Refused, holds_s: float) -> None:
        """Shards said so just now, and would for so long if nobody left early."""
        now = self._clock()
        self._noted.append((now, now + min(REMEMBERED_S, holds_s), refused))

    def of(self, work: Work, limit_s: float) -> Refused | None:
        """What shards would say of such a run, as far as is known: both its times are at least that long."""
        for passed, refused in self._standing():
            if refused.covers(work, limit_s):
                forecast_s = max(0.0, refused.forecast_s - passed)
                return replace(refused, forecast_s=forecast_s, retry_after_s=refused.retry_after_s - passed)
        return None

    def alone_s(self, work: Work) -> float:
        """What such a run takes without others, if one just like it was refused; else infinite."""
        return next((refused.alone_s for _, refused in self._standing() if refused.work == work), math.inf)

    def _standing(self) -> list[tuple[float, Refused]]:
        """Each with the seconds since; the others are forgotten."""
        now = self._clock()
        self._noted = [each for each in self._noted if each[0] <= now < each[1]]
        return [(now - at, refused) for at, _, refused in self._noted]
