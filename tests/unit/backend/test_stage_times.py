"""What stages before and after denoising take: by the latest, forgotten with time, told from process to process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processes import other_process
from swiftdiffusion.python_backends.backend import stage_times
from swiftdiffusion.python_backends.backend.stage_times import AFTER, BEFORE, FORGOTTEN_S, StageTime

NOTE = """
from swiftdiffusion.python_backends.backend.stage_times import BEFORE, StageTime
stage = StageTime(BEFORE, "sdxl_", Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    stage.note(float(sys.argv[2]))
"""


class Clock:
    """The monotonic clock, set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stage_times, "time", SimpleNamespace(monotonic=made))
    return made


def test_nothing_is_expected_of_what_was_never_seen(tmp_path: Path) -> None:
    assert StageTime(BEFORE, "", tmp_path).expected() == 0.0


def test_one_request_says_about_what_the_next_takes(tmp_path: Path) -> None:
    stage = StageTime(AFTER, "", tmp_path)
    stage.note(0.2)
    assert 0.2 <= stage.expected() <= 0.4


def test_what_repeats_is_expected_and_a_change_is_followed(tmp_path: Path, clock: Clock) -> None:
    stage = StageTime(BEFORE, "", tmp_path)
    for _ in range(60):
        stage.note(0.1)
    assert stage.expected() == pytest.approx(0.1, rel=0.01)
    stage.note(0.5)
    assert 0.1 < stage.expected() < 0.5
    for _ in range(60):
        stage.note(0.5)
    assert stage.expected() == pytest.approx(0.5, rel=0.01)


def test_most_stay_below_what_is_expected(tmp_path: Path, clock: Clock) -> None:
    stage = StageTime(BEFORE, "", tmp_path)
    taken = [0.1 + 0.01 * (7 * number % 11) for number in range(200)]
    below = []
    for seconds in taken:
        below.append(seconds <= stage.expected())
        stage.note(seconds)
    assert sum(below[20:]) / len(below[20:]) > 0.6


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(taken=st.lists(st.floats(0, 100), min_size=1, max_size=10), ages=st.lists(st.floats(0, 1000), max_size=5))
def test_the_older_the_nearer_to_the_least(tmp_path: Path, clock: Clock, taken: list[float], ages: list[float]) -> None:
    stage = StageTime(BEFORE, "", tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
    clock.now = 1000.0
    for seconds in taken:
        stage.note(seconds)
    expected = []
    for age in (0.0, *sorted(ages), 1e6):
        clock.now = 1000.0 + age
        expected.append(stage.expected())
    slack = 1e-9 * max(1.0, *taken)
    assert all(later <= earlier + slack for earlier, later in pairwise(expected))
    assert min(taken) - slack <= expected[-1] <= min(taken) + slack
    clock.now = 0.0  # it was set back: nothing is younger than new
    assert stage.expected() == pytest.approx(expected[0])


def test_a_crowd_is_forgotten_though_nobody_measures(tmp_path: Path, clock: Clock) -> None:
    stage = StageTime(BEFORE, "", tmp_path)
    stage.note(0.1)
    for _ in range(30):
        stage.note(5.0)
    assert stage.expected() > 4.0
    clock.now += 5 * FORGOTTEN_S
    assert stage.expected() < 0.2


def test_stages_and_pipelines_are_told_apart(tmp_path: Path) -> None:
    for number, (stage, pipeline) in enumerate([(BEFORE, ""), (AFTER, ""), (BEFORE, "sdxl_"), (BEFORE, "sd15_")]):
        StageTime(stage, pipeline, tmp_path).note(10.0**number)
    assert 1.0 <= StageTime(BEFORE, "", tmp_path).expected() <= 2.0
    assert 100.0 <= StageTime(BEFORE, "sdxl_", tmp_path).expected() <= 200.0


def test_two_writers_leave_something_whole_at_any_time(tmp_path: Path) -> None:
    """Some of what they note is lost, and nothing of it garbled."""
    stage = StageTime(BEFORE, "sdxl_", tmp_path)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(note_elsewhere, tmp_path)
        while not other.done():
            stage.note(0.2)
            assert 0.1 <= stage.expected() <= 0.3
        other.result()
    assert len(list(tmp_path.iterdir())) == 1


def note_elsewhere(directory: Path) -> None:
    with other_process(NOTE, str(directory), "0.1", "2000"):
        assert 0.1 <= StageTime(BEFORE, "sdxl_", directory).expected() <= 0.3
