"""What a watcher makes of time in which it did not look: nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from swiftdiffusion.python_backends.launcher.repository_api import ServerUnreachableError
from swiftdiffusion.python_backends.launcher.watcher import LOOK_EVERY_S, SILENT_S, STUCK_S, Watcher
from throwaway import add_model


@dataclass
class Api:
    """What a server says.

    Attributes:
        states: Model → state; None: it does not answer.
    """

    states: dict[str, str] | None = field(default_factory=dict)

    def index(self) -> list[dict[str, str]]:
        if self.states is None:
            raise ServerUnreachableError("no answer")
        return [{"name": model, "state": state} for model, state in self.states.items()]

    def config(self, _model: str) -> dict[str, Any]:
        return {}


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
    assert server.is_killed()


@pytest.mark.parametrize("pause_s", [0.0, 5.0, 3600.0])
def test_so_is_one_that_loads_without_a_process(server: Server, pause_s: float) -> None:
    add_model(server.repository, "slow")
    server.api.states = {"slow": "LOADING"}
    server.watched(STUCK_S / 2)
    server.now += pause_s
    server.watched(STUCK_S / 4)
    assert not server.is_killed()
    server.watched(STUCK_S)
    assert server.is_killed()
