"""Every request is counted once, whichever process it ends in or dies with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_process import own_metrics, told

from swiftdiffusion.python_backends.backend import metrics, request_ends
from swiftdiffusion.python_backends.backend.request_ends import Ending, RequestEnds
from swiftdiffusion.python_backends.common.errors import LinesFullError, RequestTimeoutError, UnexpectedError

ENDING = Ending("run", None, "tiny", at=0.0)


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[RequestEnds]:
    with own_metrics():
        yield RequestEnds(tmp_path)


def counted() -> dict[str, int]:
    """Outcome → how many."""
    metrics.close()
    return {label: round(sum(values)) for label, values in told["swiftdiffusion_requests_finished_total"].items()}


def test_whoever_comes_second_counts_nothing(ends: RequestEnds, tmp_path: Path) -> None:
    ends.accept(ENDING)
    ends.take("run")
    ends.take("run")
    ends.failed(ENDING, RequestTimeoutError("late"))
    ends.hand_on("run")
    RequestEnds(tmp_path).failed(ENDING, UnexpectedError("again"))
    ends.picture(ENDING)
    ends.count_lost()
    assert counted() == {"late": 1}


@pytest.mark.parametrize(("due", "outcome"), [(None, "in_time"), (4e9, "in_time"), (1.0, "late")])
def test_a_picture_is_in_time_or_late(ends: RequestEnds, due: float | None, outcome: str) -> None:
    ending = Ending("run", None, "tiny", at=0.0, due=due)
    ends.accept(ending)
    ends.take("run")
    ends.picture(ending)
    assert counted() == {outcome: 1}


def test_who_is_refused_needs_no_file(ends: RequestEnds) -> None:
    ends.refused(ENDING, LinesFullError("full"))
    ends.failed(None, UnexpectedError("of no pipeline"))
    assert counted() == {"shed": 1}


def test_what_a_dead_process_had_in_hand_has_failed(ends: RequestEnds, tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    for run_id, pid in (("its", other.pid), ("mine", os.getpid())):
        ends.accept(Ending(run_id, None, "tiny", at=0.0))
        (tmp_path / "requests" / run_id).rename(tmp_path / "requests" / f"{run_id}@{pid}")
    ends.count_lost()
    assert [path.name for path in (tmp_path / "requests").iterdir() if path.name.startswith("its")]
    other.kill()
    other.wait()
    ends.count_lost()
    ends.count_lost()
    assert counted() == {"failed": 1}
    assert [path.name for path in (tmp_path / "requests").iterdir()] == [f"mine@{os.getpid()}"]


def test_what_nobody_takes_up_was_dropped(ends: RequestEnds, monkeypatch: pytest.MonkeyPatch) -> None:
    ends.accept(ENDING)
    ends.count_lost()
    monkeypatch.setattr(request_ends, "DROPPED_AFTER_S", -1.0)
    ends.count_lost()
    assert counted() == {"cancelled": 1}


def test_what_a_process_had_not_written_whole_stops_nothing(
    ends: RequestEnds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_ends, "DROPPED_AFTER_S", -1.0)
    ends.accept(Ending("half", None, "tiny", at=0.0))
    (tmp_path / "requests/half").write_text('{"run_id": "ha')
    ends.accept(ENDING)
    ends.count_lost()
    assert counted() == {"cancelled": 1}
