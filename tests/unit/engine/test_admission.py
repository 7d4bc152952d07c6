"""Admission to real desks: who is refused without asking them, and what is said then."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from desk_lines import TEN, Kind, Lines, pace

from swiftdiffusion.python_backends.backend.stage_times import AFTER, BEFORE, StageTime
from swiftdiffusion.python_backends.common.runtime_directory import VARIABLE
from swiftdiffusion.python_backends.engine.admission import RELOADED_S, best_first
from swiftdiffusion.python_backends.engine.messages import Quoted
from swiftdiffusion.python_backends.engine.places import CALM_S
from swiftdiffusion.python_backends.engine.refusals import REMEMBERED_S, SAME_S
from swiftdiffusion.python_backends.engine.work import Work
from swiftdiffusion.python_backends.request.completed import PRIORITIES

SAID = re.compile(r"would be done in (\d+) ms.*retry_after_ms (\d+)")


@pytest.fixture(autouse=True, scope="module")
def _nothing_known_of_other_stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("runtime")
        patch.setenv(VARIABLE, str(directory))
        yield directory


@pytest.fixture
def crowd_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and pictures take seconds just now, after they took 40 and 20 ms."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    for stage, seconds in ((BEFORE, 0.04), (AFTER, 0.02)):
        time = StageTime(stage, "")
        for each in [seconds, *[100 * seconds] * 10]:
            time.note(each)


KINDS = [
    Kind(work, patience, priority)
    for work in (TEN, Work(2, 2, 4), Work(1, 3, 1), Work(2, 1, 8), Work(2, 1, 8, control_rows=(8, 8)))
    for patience in (None, 1.5, 2.0, 2.5)
    for priority in PRIORITIES
]


def test_hardly_anybody_is_refused_unasked_whom_a_shard_would_take() -> None:
    """One in a hundred at most, and only after somebody who asked for less: a tighter limit may begin sooner."""
    unasked = taken = 0
    for seed in range(300):
        chance = random.Random(seed)
        lines = Lines(chance.randint(1, 3), chance.randint(1, 3), chance.choice([3, 64]))
        refused: list[tuple[float, Kind]] = []
        for kind in chance.choices(KINDS, k=25):
            lines.pass_time(chance.randint(0, 10) / 256)
            desks, asked = deepcopy(lines.desks), lines.asked
            if lines.come(kind) is None:
                continue
            if lines.asked > asked:
                refused.append((lines.now, kind))
                continue
            assert any(lines.now - at < REMEMBERED_S and kind.is_as_hard_as(each) for at, each in refused)
            unasked += 1
            taken += not all(kind.is_refused_by(desk) for desk in desks)
    assert unasked > 1000
    assert taken <= 0.01 * unasked


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
    quotes = [(Quoted(seconds, 1.0, in_line, seconds, 1.0), name) for name, (seconds, in_line) in said.items()]
    assert [name for _, name in best_first(quotes)] == ["shorter", "short", "long", "slower", "slow"]


@pytest.mark.parametrize("limit_ms", [1, 30, 500])
@pytest.mark.parametrize("said", ["TIMEOUT_MS", "the server's limit"])
def test_a_refusal_quotes_the_limit_that_was_given(limit_ms: int, said: str, crowd_elsewhere: None) -> None:
    """Also where prompts and pictures take longer than that."""
    if said == "TIMEOUT_MS":
        lines, hopeless = Lines(), Kind(patience=limit_ms / 1000 / Kind(patience=1.0).limit_s)
    else:
        lines, hopeless = Lines(slo_ms=limit_ms), Kind(patience=None)
    assert f"{said} allows {limit_ms} ms; it would never be" in lines.crowd(hopeless)


def test_a_crowd_in_other_stages_is_no_reason_to_say_never(crowd_elsewhere: None) -> None:
    """At best they take 60 ms, now seconds."""
    alone_s = Kind(patience=1.0).limit_s
    assert f"retry_after_ms {1000 * CALM_S:.0f}" in (Lines().come(Kind(patience=1.5)) or "")
    assert "it would never be" in (Lines().come(Kind(patience=1.12 + 0.06 / alone_s)) or "")


def test_who_needs_the_help_of_a_busy_shard_may_try_again_when_the_first_is_idle() -> None:
    lines, kind = Lines(shards=3, helping=True), Kind(patience=0.8)
    for shard, steps in (("shard 0", 10), ("shard 1", 90)):
        lines.shards[shard].submit(replace(TEN, steps=steps))
    said = SAID.search(lines.come(kind) or "")
    assert said
    assert int(said[2]) == pytest.approx(1000 * 10 * pace(4), abs=1)
    lines.pass_time(int(said[2]) / 1000 - 0.1)
    assert lines.come(kind)
    lines.pass_time(0.1)
    assert lines.come(kind) is None


def test_a_shard_that_is_down_helps_when_it_is_there_again() -> None:
    lines, kind = Lines(helping=True), Kind(patience=0.8)
    down = lines.places.pop("shard 0")
    assert f"retry_after_ms {1000 * RELOADED_S:.0f}" in (lines.come(kind) or "")
    lines.places["shard 0"] = down
    lines.pass_time(REMEMBERED_S)
    assert lines.come(kind) is None
