"""What the metrics say of a watcher's status."""

from __future__ import annotations

import errno
import json
import time
from typing import TYPE_CHECKING

import pytest
from model_process import own_metrics, told

from swiftdiffusion.python_backends.backend import watch_metrics as watch_metrics_module
from swiftdiffusion.python_backends.backend.watch_metrics import TOLD_FILE, WatchMetrics
from swiftdiffusion.python_backends.common.pulse import Pulse
from swiftdiffusion.python_backends.launcher.watch_status import Down, WatchStatus, tell_of_a_look, write_status

if TYPE_CHECKING:
    from pathlib import Path


def tell_once(runtime: Path) -> None:
    WatchMetrics(runtime).close()


def test_counters_go_on_where_another_process_tells_them(tmp_path: Path) -> None:
    Pulse("calm", "calm_0", tmp_path)
    status = WatchStatus(heals={"shard": 2}, restarts=1)
    with own_metrics():
        tell_once(tmp_path)
        status.down["shard"] = Down("its process died", since=0.0, tries=1)
        write_status(tmp_path, status.to_json())
        tell_once(tmp_path)
        status.heals["shard"], status.restarts = 3, 1
        write_status(tmp_path, status.to_json())
        tell_once(tmp_path)
    assert sum(told["swiftdiffusion_heals_total"]["shard"]) == 3
    assert sum(told["swiftdiffusion_heals_total"]["calm"]) == 0
    assert sum(told["swiftdiffusion_restarts_total"][""]) == 1
    assert told["swiftdiffusion_model_down"]["shard"][-1] == 1
    assert told["swiftdiffusion_model_down"]["calm"][-1] == 0


def test_the_time_in_which_a_watcher_looked_is_told_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_metrics_module, "EVERY_S", 0.01)
    monkeypatch.setattr(watch_metrics_module, "LOOKS_WITHIN_S", 1.0)
    with own_metrics():
        metrics = WatchMetrics(tmp_path)
        began = time.monotonic()
        for pause_s in (0.0, 0.2, 0.2, 0.2, 2.0, 0.2, 0.2):  # one of them is too long
            time.sleep(pause_s)
            tell_of_a_look(tmp_path)
        looked_s = time.monotonic() - began - 2.0
        time.sleep(0.2)
        metrics.close()
    assert looked_s - 0.5 < sum(told["swiftdiffusion_watched_seconds_total"][""]) < looked_s + 0.5


def test_where_nothing_can_be_written_nothing_is_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_full(_path: Path, _text: str) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(watch_metrics_module, "EVERY_S", 0.01)
    with own_metrics():
        metrics = WatchMetrics(tmp_path)
        monkeypatch.setattr(watch_metrics_module, "replace_text", is_full)
        Pulse("shard", "shard_0", tmp_path)
        write_status(tmp_path, WatchStatus(heals={"shard": 2}).to_json())
        time.sleep(0.2)
        metrics.close()
    assert sum(told["swiftdiffusion_heals_total"]["shard"]) == 2


@pytest.mark.parametrize("text", ["", '{"heals": {"sha', "[1]"])
def test_a_file_without_an_end_is_as_none(tmp_path: Path, text: str) -> None:
    Pulse("shard", "shard_0", tmp_path)
    (tmp_path / TOLD_FILE).write_text(text)
    write_status(tmp_path, WatchStatus(heals={"shard": 2}).to_json())
    with own_metrics():
        tell_once(tmp_path)
    assert sum(told["swiftdiffusion_heals_total"]["shard"]) == 2
    assert json.loads((tmp_path / TOLD_FILE).read_text())["heals"] == {"shard": 2}
