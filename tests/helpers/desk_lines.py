"""Requests that ask for admission to real desks, with no server between."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

from stepped_shard import SteppedShard

from swiftdiffusion.python_backends.common.errors import OverloadedError
from swiftdiffusion.python_backends.engine.admission import Admission
from swiftdiffusion.python_backends.engine.desk import Desk
from swiftdiffusion.python_backends.engine.messages import Claim, Claimed, Quoted
from swiftdiffusion.python_backends.engine.places import Places
from swiftdiffusion.python_backends.engine.refusals import SAME_S
from swiftdiffusion.python_backends.engine.step_times import StepTimes
from swiftdiffusion.python_backends.engine.work import Work
from swiftdiffusion.python_backends.request.completed import PRIORITIES, CompletedRequest, ControlNetUse, Priority
from swiftdiffusion.python_backends.request.rules import RequestRules

WORKS = range(1, 33)
TEN = Work(2, 2, 10)
EDGES = ControlNetUse("edges", ("0" * 64,), 1.0, 0.0, 1.0, guess_mode=False)


def pace(work: int, control_work: int = 0) -> float:
    """Seconds of a step, in parts of a second so that every time of a test is exact."""
    return (work + control_work) / 64


@dataclass(frozen=True)
class Kind:
    """What somebody asks for; `limit_s` in times of what it takes alone."""

    work: Work = TEN
    patience: float | None = 2.0
    priority: Priority = "normal"

    @property
    def limit_s(self) -> float:
        if self.patience is None:
            return math.inf
        return self.patience * self.work.steps * pace(self.work.of_a_step, self.work.control_work)

    def is_as_hard_as(self, other: Kind) -> bool:
        return (
            self.work.of_a_step >= other.work.of_a_step
            and sum(self.work.control_rows) >= sum(other.work.control_rows)
            and self.work.steps >= other.work.steps
            and PRIORITIES.index(self.priority) <= PRIORITIES.index(other.priority)
            and self.limit_s <= other.limit_s + SAME_S
        )

    def is_refused_by(self, desk: Desk) -> bool:
        limit_s = None if self.patience is None else self.limit_s
        return deepcopy(desk).claim(replace(self.work, priority=self.priority), limit_s).id is None

    def request(self, now: float) -> CompletedRequest:
        return CompletedRequest(
            run_id="",
            prompt="",
            negative_prompt=None,
            seed=0,
            steps=self.work.steps,
            guidance_scale=5.0 if self.work.rows == 2 else 1.0,
            height=1,
            width=self.work.pixels,
            scheduler=None,
            deadline=None if self.patience is None else now + self.limit_s,
            controlnets=(EDGES,) * (sum(self.work.control_rows) // (self.work.rows * self.work.steps)),
            priority=self.priority,
        )


class Lines:
    """Shards whose desks are asked with no server between.

    Attributes:
        asked: How often.
    """

    def __init__(
        self, shards: int = 2, places: int = 2, longest: int = 64, helping: bool = False, **rules: Any
    ) -> None:
        times = StepTimes()
        for work in WORKS:
            times.note(work, pace(work))
            times.note(1, pace(1, work), work)
        self.shards = {f"shard {number}": SteppedShard(pace, times, places, longest) for number in range(shards)}
        others = shards - 1 if helping else 0
        self.places = {name: Places(shard.desk, others) for name, shard in self.shards.items()}
        self.asked, self.helping = 0, helping
        self.admission = Admission(
            cast("Any", self), RequestRules(1, 1.0, 1, 1, 1, 1, "", **rules), "", lambda: self.now
        )

    @property
    def now(self) -> float:
        return self.shards["shard 0"].now

    @property
    def desks(self) -> list[Desk]:
        return [shard.desk for shard in self.shards.values()]

    @property
    def names(self) -> list[str]:
        return list(self.shards)

    def pass_time(self, seconds: float) -> None:
        for shard in self.shards.values():
            shard.pass_time(seconds)

    def come(self, kind: Kind) -> str | None:
        """What a request is told that is refused."""
        try:
            self.admission.admit(kind.request(self.now))
        except OverloadedError as error:
            return str(error)
        return None

    def come_unasked(self, kind: Kind) -> str | None:
        """The same where no desk is asked, else None."""
        before, said = self.asked, self.come(kind)
        return said if self.asked == before else None

    def crowd(self, kind: Kind = Kind()) -> str:
        """Requests until one is refused, and what it is told."""
        while (said := self.come(kind)) is None:
            pass
        return said

    def quotes(self, work: Work) -> list[tuple[Quoted, str]]:
        self.asked += 1
        return [(places.quote(work), name) for name, places in self.places.items()]

    def claim(self, name: str, message: Claim) -> Claimed:
        self.asked += 1
        asked = message if self.helping else replace(message, helpers=0)
        answer = self.places[name].claim(asked, measured_s=0.0)
        if answer.id is not None:
            self.shards[name].submit(message.work, answer.id)
        return answer
