"""When a server is started again, and when not."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from swiftdiffusion.python_backends.launcher.errors import LauncherError, ServerDiedError, StartupTimeoutError
from swiftdiffusion.python_backends.launcher.supervision import Supervisor
from swiftdiffusion.python_backends.launcher.watch_status import WatchStatus


class ScriptedServer:
    """Loads for some seconds of a clock that is set by hand, and ends when its script says so."""

    def __init__(self, *loads: tuple[float, LauncherError | None]) -> None:
        """What each start comes to, and after how long; those that follow load at once."""
        self.now, self.starts, self.pauses = 0.0, 1, list[float]()
        self.said: list[str] = []
        self._loads: Iterator[tuple[float, LauncherError | None]] = iter(loads)
        self._ended: ServerDiedError | None = None
        self.pid = 1
        self.looks, self.status = 0, WatchStatus()

    def supervisor(self) -> Supervisor:
        return Supervisor(self, self, self.said.append, lambda: self.now, self.pauses.append)  # type: ignore[arg-type]

    def end(self, after: float, number: signal.Signals = signal.SIGABRT) -> None:
        self.now += after
        self._ended = ServerDiedError(-number, "the log")

    def check_alive(self) -> None:
        if self._ended is not None:
            raise self._ended

    def remove_remains(self) -> None:
        assert self._ended is not None

    def start_again(self) -> None:
        self._ended, self.starts = None, self.starts + 1

    def look(self) -> None:
        self.looks += 1

    def wait_ready(self, look: Callable[[], object]) -> None:
        seconds, error = next(self._loads, (0.0, None))
        self.now += seconds
        if error is not None:
            self._ended = error if isinstance(error, ServerDiedError) else None
            raise error


def killed() -> ServerDiedError:
    return ServerDiedError(-signal.SIGKILL, "the log")


def ready(*loads: tuple[float, LauncherError | None]) -> tuple[ScriptedServer, Callable[[], None], Supervisor]:
    server = ScriptedServer((0.0, None), *loads)
    supervisor = server.supervisor()
    supervisor.wait_ready(server.wait_ready)
    return server, supervisor.check, supervisor


def test_a_server_that_runs_is_left_alone() -> None:
    server, check, _ = ready()
    check()
    assert (server.starts, server.said) == (1, [])


def test_one_that_ends_now_and_then_is_started_again_each_time() -> None:
    server, check, supervisor = ready()
    for _ in range(5):
        server.end(after=61.0)
        check()
    assert (server.starts, server.pauses) == (6, [1.0] * 5)
    assert len(supervisor.ends) == 5
    assert "signal SIGABRT" in server.said[0] and server.said[1] == "ready again: pid 1"


def test_the_third_end_in_a_minute_is_the_last() -> None:
    server, check, _ = ready()
    for _ in range(2):
        server.end(after=20.0)
        check()
    server.end(after=15.0)
    with pytest.raises(ServerDiedError, match="SIGABRT"):
        check()
    assert (server.starts, server.pauses) == (3, [1.0, 2.0])
    assert "3 times in 60 s of serving" in server.said[-1]


def test_who_ends_in_every_load_is_given_up_however_long_it_loads() -> None:
    server, check, _ = ready((40.0, killed()), (40.0, killed()))
    server.end(after=1000.0)
    with pytest.raises(ServerDiedError, match="SIGKILL"):
        check()
    assert server.starts == 3


def test_one_that_is_killed_in_its_first_load_is_started_again() -> None:
    server = ScriptedServer((5.0, killed()))
    server.supervisor().wait_ready(server.wait_ready)
    assert server.starts == 2


def test_options_that_it_refuses_end_it() -> None:
    server = ScriptedServer((0.0, ServerDiedError(1, "unrecognized option")))
    with pytest.raises(ServerDiedError, match="unrecognized option"):
        server.supervisor().wait_ready(server.wait_ready)
    assert server.starts == 1


def test_one_that_does_not_get_ready_again_is_not_started_for_ever() -> None:
    server, check, _ = ready((600.0, StartupTimeoutError("not ready")))
    server.end(after=1.0)
    with pytest.raises(StartupTimeoutError):
        check()
