"""What a watcher makes of time in which it did not look: nothing."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from file_server import wait_for
from swiftdiffusion.python_backends.common.runtime_directory import LOOK_FILE
from swiftdiffusion.python_backends.launcher.errors import LauncherError
from swiftdiffusion.python_backends.launcher.repository_api import RepositoryApiError, ServerUnreachableError
from swiftdiffusion.python_backends.launcher.watcher import LOOK_EVERY_S, SILENT_S, STUCK_S, Watcher
from throwaway import add_model


@dataclass
class Api:
    """What a server says.

    Attributes:
        states: Model → state; None: it does not answer.
        reason: Of those states.
        instances: Processes that each model should have.
        failure: What loading comes to.
        loads: Models that were loaded.
        refusal: What it says instead of states.
        versions: How often it names each model.
        held: While somebody holds it, no load ends.
    """

    states: dict[str, str] | None = field(default_factory=dict)
    reason: str = ""
    instances: int = 0
    failure: RepositoryApiError | None = None
    loads: list[str] = field(default_factory=list)
    refusal: RepositoryApiError | None = None
    versions: int = 1
    held: threading.Lock = field(default_factory=threading.Lock)

    def index(self) -> list[dict[str, str]]:
        if self.states is None:
            raise ServerUnreachableError("no answer")
        if self.refusal is not None:
            raise self.refusal
        states = [(model, state) for model, state in self.states.items() for _ in range(self.versions)]
        return [{"name": model, "state": state, "reason": self.reason} for model, state in states]

    def config(self, _model: str) -> dict[str, Any]:
        return {"backend": "python", "instance_group": [{"count": self.instances}] if self.instances else []}

    def load(self, model: str, _timeout_s: float) -> None:
        self.loads.append(model)
        with self.held:
            pass
        if self.failure is not None:
            raise self.failure

    replace = load


class Server:
    """A process without models, and the time that its watcher sees."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(["sleep", "600"])
        self.pid, self.api, self.now = self.process.pid, Api(), 1000.0
        self.runtime = self.home = directory
        self.repository = directory / "repository"
        self.watcher = Watcher(self, lambda _: None, clock=lambda: self.now)  # type: ignore[arg-type]

    def watched(self, seconds: float) -> None:
        """Time passes in which its watcher looks."""
        for _ in range(int(seconds / LOOK_EVERY_S)):
            self.now += LOOK_EVERY_S
            self.watcher.look()

    def is_killed(self) -> bool:
        try:
            return bool(self.process.wait(0.2))
        except subprocess.TimeoutExpired:
            return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


@pytest.mark.parametrize("pause_s", [0.0, 5.0, 3600.0])
def test_a_server_that_is_silent_is_killed_for_what_was_watched(server: Server, pause_s: float) -> None:
    server.api.states = {"calm": "READY"}
    server.watched(2)
    server.api.states = None
    server.now += pause_s
    server.watched(SILENT_S / 2)
    assert not server.is_killed()
    server.watched(SILENT_S / 2 + 2)
    assert server.process.wait(10)


@pytest.mark.parametrize("pause_s", [0.0, 5.0, 3600.0])
def test_so_is_one_that_loads_without_a_process(server: Server, pause_s: float) -> None:
    add_model(server.repository, "slow")
    server.api.states = {"slow": "LOADING"}
    server.watched(STUCK_S / 2)
    server.now += pause_s
    server.watched(STUCK_S / 4)
    assert not server.is_killed()
    server.watched(STUCK_S)
    assert server.process.wait(10)


def waited(server: Server, loads: int) -> None:
    """Until so many loads have been asked for and answered; time passes in which the watcher looks."""
    wait_for(lambda: server.watched(LOOK_EVERY_S) or len(server.api.loads) >= loads, 10)


def test_one_that_dies_again_and_again_is_loaded_again_after_longer_and_longer_pauses(server: Server) -> None:
    server.api.instances, server.api.states = 1, {"dies": "READY"}
    server.watched(60)
    assert 3 <= len(server.api.loads) <= 9


def test_one_whose_load_fails_while_the_server_is_asked_is_not_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process was there when processes were counted, and the version that had died is `READY`."""
    server.api.states = {"weights": "READY"}
    server.watched(2)
    told = server.api.index

    def index() -> list[dict[str, str]]:
        server.api.held.release()
        wait_for(lambda: not server.watcher._heals.on_their_way)
        return told()

    server.api.held.acquire()
    server.api.failure, server.api.states = RepositoryApiError("no such file"), {"weights": "UNAVAILABLE"}
    waited(server, 1)
    server.api.states = {"weights": "READY"}
    monkeypatch.setattr(server.api, "index", index)
    server.watched(LOOK_EVERY_S)
    assert server.watcher.status.down["weights"].reason == "no such file"


def test_fewer_instances_are_no_deaths(server: Server) -> None:
    server.api.instances, server.api.states = 0, {"calm": "READY"}
    server.watched(2)
    server.watcher._expected["calm"] = 2  # as it was configured before
    server.watched(5)
    assert server.api.loads == []


def test_one_that_is_unloaded_while_it_is_down_stays_so(server: Server) -> None:
    server.api.instances, server.api.states = 1, {"broken": "READY"}
    server.api.failure = RepositoryApiError("no weights")
    waited(server, 2)
    assert server.watcher.status.down["broken"].reason == "no weights"
    server.api.states, server.api.reason = {"broken": "UNAVAILABLE"}, "unloaded"
    server.watched(1)
    loads = len(server.api.loads)
    server.watched(120)
    assert len(server.api.loads) == loads
    assert server.watcher.status.down == {}


def test_a_server_has_one_watcher(server: Server) -> None:
    def watch() -> Watcher:
        return Watcher(server, lambda _: None)  # type: ignore[arg-type]

    with pytest.raises(LauncherError, match=f"watched already, by process {os.getpid()}$"):
        watch()
    server.watcher.close()
    watch().close()


def looks(server: Server) -> int:
    """When it was looked after last, as others see it."""
    server.watched(1)
    return (server.runtime / LOOK_FILE).stat().st_mtime_ns


def test_its_looks_are_seen_unless_it_cannot_heal(server: Server) -> None:
    before = looks(server)
    assert looks(server) > before
    server.api.refusal = RepositoryApiError("restricted")
    before = looks(server)
    assert looks(server) == before
    server.api.refusal = None
    assert looks(server) > before


def test_a_model_with_several_versions_is_loaded_once(server: Server) -> None:
    server.api.states, server.api.instances, server.api.versions = {"dies": "READY"}, 1, 2
    server.watched(2)
    waited(server, 1)
    server.api.states, server.api.reason = {"dies": "UNAVAILABLE"}, "Stub process 'dies_0_0' is not healthy."
    server.api.held.acquire()
    loads = len(server.api.loads)
    wait_for(lambda: server.watched(LOOK_EVERY_S) or len(server.api.loads) > loads, 10)
    server.watched(30)
    server.api.held.release()
    assert len(server.api.loads) == loads + 1
