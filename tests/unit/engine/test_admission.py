"""Admission to real desks: who is refused without asking them, and what is said then."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepped_shard import SteppedShard

from swiftdiffusion.python_backends.common.errors import OverloadedError
from swiftdiffusion.python_backends.common.runtime_directory import VARIABLE
from swiftdiffusion.python_backends.engine.admission import Admission, best_first
from swiftdiffusion.python_backends.engine.desk import Desk
from swiftdiffusion.python_backends.engine.messages import Claim, Claimed, Quoted, Work
from swiftdiffusion.python_backends.engine.refusals import REMEMBERED_S, SAME_S
from swiftdiffusion.python_backends.engine.step_times import StepTimes
from swiftdiffusion.python_backends.request.completed import PRIORITIES, CompletedRequest, Priority
from swiftdiffusion.python_backends.request.rules import RequestRules

SAID = re.compile(r"would be done in (\d+) ms.*retry_after_ms (\d+)")
WORKS = range(1, 33)
TEN = Work(2, 2, 10)


def pace(work: int) -> float:
    """Seconds of a step, in parts of a second so that every time of a test is exact."""
    return work / 64


@dataclass(frozen=True)
class Kind:
    """What somebody asks for; `limit_s` in times of what it takes alone."""

    work: Work = TEN
    patience: float | None = 2.0
    priority: Priority = "normal"

    @property
    def limit_s(self) -> float:
        return math.inf if self.patience is None else self.patience * self.work.steps * pace(self.work.of_a_step)

    def is_as_hard_as(self, other: Kind) -> bool:
        return (
            self.work.of_a_step >= other.work.of_a_step
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
            priority=self.priority,
        )


class Lines:
    """Shards whose desks are asked with no server between.

    Attributes:
        asked: How often.
    """

    def __init__(self, shards: int = 2, places: int = 2, longest: int = 64, **rules: Any) -> None:
        times = StepTimes()
        for work in WORKS:
            times.note(work, pace(work))
        self.shards = {f"shard {number}": SteppedShard(pace, times, places, longest) for number in range(shards)}
        self.asked = 0
        self.admission = Admission(
            cast("Any", self), RequestRules(1, 1.0, 1, 1, 1, 1, "", **rules), "", lambda: self.now
        )

    @property
    def now(self) -> float:
        return self.shards["shard 0"].now

    @property
    def desks(self) -> list[Desk]:
        return [shard.desk for shard in self.shards.values()]

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
        alone = work.steps * pace(work.of_a_step)
        return [
            (Quoted(shard.desk.quote(work), alone, shard.desk.in_line), name) for name, shard in self.shards.items()
        ]

    def claim(self, name: str, message: Claim) -> Claimed:
        self.asked += 1
        return self.shards[name].come(message.work, message.limit_s)


@pytest.fixture(autouse=True, scope="module")
def _nothing_known_of_other_stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("runtime")
        patch.setenv(VARIABLE, str(directory))
        yield directory


kinds = st.builds(
    Kind,
    st.sampled_from([Work(2, 2, 10), Work(2, 2, 4), Work(1, 3, 1), Work(2, 1, 8)]),
    st.sampled_from([None, 1.5, 2.0, 2.5]),
    st.sampled_from(PRIORITIES),
)
comings = st.lists(st.tuples(st.integers(0, 10).map(lambda number: number / 256), kinds), min_size=10, max_size=30)


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([3, 64]), comings)
def test_who_is_refused_unasked_would_be_refused(
    shards: int, places: int, longest: int, others: list[tuple[float, Kind]]
) -> None:
    """By each desk that would refuse again who was refused before: until when it would, it tells to a 64th."""
    lines, refused = Lines(shards, places, longest), []
    for after, kind in others:
        lines.pass_time(after)
        desks, unasked = deepcopy(lines.desks), lines.asked
        if lines.come(kind) is None:
            continue
        if lines.asked == unasked:
            easier = [each for at, each in refused if lines.now - at < REMEMBERED_S and kind.is_as_hard_as(each)]
            assert easier
            for desk in desks:
                assert kind.is_refused_by(desk) or not any(each.is_refused_by(desk) for each in easier)
        else:
            refused.append((lines.now, kind))


def test_the_same_again_is_told_the_same_less_the_time_since() -> None:
    lines = Lines()
    first = SAID.search(lines.crowd())
    lines.pass_time(0.03)
    again = SAID.search(lines.come_unasked(Kind()) or "")
    assert first and again
    assert int(again[1]) == pytest.approx(int(first[1]) - 30, abs=1)
    assert int(again[2]) == pytest.approx(int(first[2]) - 30, abs=1)


@pytest.mark.parametrize(
    "harder",
    [
        Kind(Work(2, 2, 11), patience=1.5),
        Kind(Work(2, 3, 10), patience=1.0),
        Kind(patience=1.5),
        Kind(priority="low"),
        replace(Kind(), patience=2.0 + SAME_S / 2),
    ],
)
def test_who_is_at_least_as_hard_is_refused_unasked(harder: Kind) -> None:
    lines = Lines()
    lines.crowd()
    assert lines.come_unasked(harder) is not None


@pytest.mark.parametrize(
    "easier",
    [
        Kind(Work(2, 2, 9), patience=2.2),
        Kind(Work(1, 2, 10), patience=4.0),
        Kind(Work(2, 1, 10), patience=4.0),
        Kind(patience=2.1),
        Kind(patience=None),
        Kind(priority="high"),
    ],
)
def test_who_is_easier_in_any_way_is_not(easier: Kind) -> None:
    lines = Lines()
    lines.crowd()
    assert lines.come_unasked(easier) is None


def test_nothing_is_remembered_for_long() -> None:
    lines = Lines()
    lines.crowd()
    lines.pass_time(0.9 * REMEMBERED_S)
    assert lines.come_unasked(Kind())
    lines.pass_time(0.1 * REMEMBERED_S)
    assert not lines.come_unasked(Kind())


def test_nothing_is_remembered_beyond_the_time_to_try_again() -> None:
    lines, quick = Lines(shards=1, places=1), Kind(Work(1, 1, 1), patience=1.5)
    said = SAID.search(lines.crowd(quick))
    assert said
    assert 0 < int(said[2]) < 1000 * REMEMBERED_S
    lines.pass_time(int(said[2]) / 1000)
    assert lines.come(quick) is None


def test_nothing_is_remembered_beyond_what_is_known_of_a_shard_that_was_not_asked() -> None:
    lines, kind = Lines(places=1), Kind(Work(2, 2, 1), patience=4.0)
    lines.shards["shard 0"].submit(Work(1, 1, 9))
    lines.shards["shard 1"].submit(Work(1, 1, 13))
    assert lines.come(Kind(Work(1, 3, 1), patience=4.0))  # now nobody as patient may wait at the first shard
    assert lines.come(kind)  # who would be late at the second one, at first
    lines.pass_time(0.04)
    assert lines.come_unasked(kind)
    lines.pass_time(0.006)
    assert lines.come(kind) is None


def test_a_full_line_is_remembered_and_takes_nobody() -> None:
    lines = Lines(longest=1)
    lines.crowd(Kind(patience=None))
    assert "all lines are full" in (lines.come_unasked(Kind(patience=None)) or "")
    assert "TIMEOUT_MS allows" in (lines.come_unasked(Kind(patience=9.0)) or "")
    assert lines.come_unasked(Kind(patience=None, priority="high")) is None


def test_what_can_never_be_is_remembered() -> None:
    lines, hopeless = Lines(), Kind(patience=1.0)
    assert "it would never be" in lines.crowd(hopeless)
    assert "it would never be" in (lines.come_unasked(hopeless) or "")
    assert lines.come(Kind()) is None


@pytest.mark.parametrize("rules", [{"slo_ms": 1300}, {"slo_factor": 2.0}])
def test_the_servers_own_limit_is_remembered(rules: dict[str, Any]) -> None:
    lines, unlimited = Lines(**rules), Kind(patience=None)
    assert "the server's limit allows" in lines.crowd(unlimited)
    assert "the server's limit allows" in (lines.come_unasked(unlimited) or "")
    assert lines.come_unasked(Kind(patience=9.0)) is None
    lines.pass_time(REMEMBERED_S)
    assert lines.come_unasked(unlimited) is None


def test_a_clock_that_is_set_back_ends_all_memory() -> None:
    lines = Lines()
    lines.crowd()
    for shard in lines.shards.values():
        shard.now -= 1.0
    assert lines.come_unasked(Kind()) is None


def test_of_shards_that_hardly_differ_the_one_with_least_in_line_is_asked_first() -> None:
    said = {"slow": (4.0, 0), "long": (2.0, 300), "short": (2.5, 200), "shorter": (2.4, 100), "slower": (3.0, 0)}
    quotes = [(Quoted(seconds, 1.0, in_line), name) for name, (seconds, in_line) in said.items()]
    assert [name for _, name in best_first(quotes)] == ["shorter", "short", "long", "slower", "slow"]
