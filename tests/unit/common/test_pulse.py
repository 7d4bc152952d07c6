"""What is seen of a process by its pulse."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from file_server import wait_for
from processes import other_process
from swiftdiffusion.python_backends.common import pulse as pulse_module
from swiftdiffusion.python_backends.common.draining import begin_draining, is_draining, quiet_s
from swiftdiffusion.python_backends.common.pulse import (
    DOOR,
    ENGINE,
    SETTLED_S,
    Pulse,
    forget_dead,
    loading,
    seen,
    seen_models,
)
from swiftdiffusion.python_backends.launcher.hanging import HANGS_S, Hanging
from swiftdiffusion.python_backends.launcher.model_processes import ModelProcess

if TYPE_CHECKING:
    from pathlib import Path

READY = """\
from swiftdiffusion.python_backends.common.pulse import Pulse
pulse = Pulse("model", sys.argv[1], Path(sys.argv[2]))
pulse.ready()
"""


def is_up(runtime: Path) -> bool:
    return all(each.is_up for each in seen("model", runtime))


def wait_up(runtime: Path) -> None:
    deadline = time.monotonic() + 5
    while not is_up(runtime) and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_process_is_up_from_when_it_is_ready_until_it_ends(tmp_path: Path) -> None:
    pulse = Pulse("model", "model_0", tmp_path)
    assert seen("model", tmp_path) == []
    pulse.ready()
    assert is_up(tmp_path)
    assert seen_models(tmp_path) == ["model"]
    pulse.close()
    assert seen("model", tmp_path) == []


def test_one_that_loads_for_too_long_hangs_until_it_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse_module, "LOADING_S", -1.0)
    pulse = Pulse("model", "model_0", tmp_path)
    processes = [ModelProcess(os.getpid(), "model", is_stopped=False)]
    hanging = Hanging(os.getppid(), tmp_path)
    assert [hanging.found(processes, HANGS_S) for _ in range(2)] == [[], [(os.getpid(), "model hangs")]]
    pulse.ready()
    assert hanging.found(processes, HANGS_S) == []


def test_a_record_that_is_not_written_yet_is_none(tmp_path: Path) -> None:
    Pulse("model", "model_0", tmp_path)
    for record in (tmp_path / "processes/model").iterdir():
        record.write_bytes(b"")
    assert loading("model", tmp_path) == []


def test_in_the_place_of_another_it_is_up_a_moment_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(pulse_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for _ in range(2):
        pulse = Pulse("model", "model_0", tmp_path)
        pulse.ready()
    assert not is_up(tmp_path)
    now[0] += SETTLED_S + 0.05
    assert is_up(tmp_path)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_is_killed_or_stopped_is_not_up_at_once(tmp_path: Path, how: signal.Signals) -> None:
    with other_process(READY, "model_0", str(tmp_path)) as process:
        wait_up(tmp_path)
        (before,) = seen("model", tmp_path)
        assert (before.pid, before.is_up) == (process.pid, True)
        os.kill(process.pid, how)
        wait_for(lambda: not is_up(tmp_path))


def test_its_successor_takes_its_place(tmp_path: Path) -> None:
    with other_process(READY, "model_0", str(tmp_path)):
        wait_up(tmp_path)
    assert not is_up(tmp_path)
    with other_process(READY, "model_0", str(tmp_path)) as second:
        wait_up(tmp_path)
        assert [(each.pid, each.is_up) for each in seen("model", tmp_path)] == [(second.pid, True)]


def test_one_that_ends_leaves_its_successor_s_record(tmp_path: Path) -> None:
    before, after = Pulse("model", "model_0", tmp_path), Pulse("model", "model_0", tmp_path)
    after.ready()
    before.close()
    assert len(seen("model", tmp_path)) == 1


def test_a_later_process_of_the_same_id_is_another_one(tmp_path: Path) -> None:
    Pulse("model", "model_0", tmp_path).ready()
    record = next((tmp_path / "processes/model").iterdir())
    record.write_bytes(record.read_bytes()[:8] + b"\1" + record.read_bytes()[9:])  # of when it began
    time.sleep(SETTLED_S + 0.05)
    assert not is_up(tmp_path)


def test_what_takes_longer_than_it_should_is_overdue(tmp_path: Path) -> None:
    pulse = Pulse("model", "model_0", tmp_path)
    pulse.ready()
    with pulse.within(60.0), pulse.within(60.0, ENGINE):
        assert seen("model", tmp_path)[0].overdue_s == 0
        pulse.until(0.05)
        time.sleep(0.1)
        assert 0.04 < seen("model", tmp_path)[0].overdue_s < 5
        pulse.until(60.0)
        assert seen("model", tmp_path)[0].overdue_s == 0
    assert seen("model", tmp_path)[0].overdue_s == 0


def test_a_server_is_quiet_when_no_model_has_anything_to_do_of_what_was_accepted(tmp_path: Path) -> None:
    assert not is_draining(tmp_path)
    begin_draining(tmp_path)
    assert is_draining(tmp_path)
    door, worker = Pulse("preprocess", "preprocess_0", tmp_path), Pulse("model", "model_0", tmp_path)
    for each in (door, worker):
        each.ready()
    with door.within(60.0, DOOR):
        with worker.within(60.0):
            assert quiet_s(tmp_path) == 0
        time.sleep(0.05)
        assert 0.04 < quiet_s(tmp_path) < 5


def test_one_that_loads_takes_the_place_of_another_when_it_is_ready(tmp_path: Path) -> None:
    """Until then the other serves; if the load fails, it goes on."""
    with other_process(READY, "model_0", str(tmp_path)) as serving:
        wait_up(tmp_path)
        loading = Pulse("model", "model_0", tmp_path)
        assert [(each.pid, each.is_up) for each in seen("model", tmp_path)] == [(serving.pid, True)]
        loading.ready()
        assert [each.pid for each in seen("model", tmp_path)] == [os.getpid()]


def test_the_dead_are_forgotten_and_keep_no_server_busy(tmp_path: Path) -> None:
    busy = READY + "pulse.until(60.0)\n"
    with other_process(busy, "model_1", str(tmp_path)), other_process(READY, "model_0", str(tmp_path)):
        wait_up(tmp_path)
        assert quiet_s(tmp_path) == 0
    Pulse("model", "model_0", tmp_path).ready()
    time.sleep(SETTLED_S + 0.05)
    assert not is_up(tmp_path)
    assert quiet_s(tmp_path) > 0
    forget_dead("model", tmp_path)
    assert [each.is_up for each in seen("model", tmp_path)] == [True]
