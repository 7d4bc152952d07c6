"""Servers that are started again when they end, as by `swiftdiffusion serve`, under tests that end processes."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from file_server import wait_for
from swiftdiffusion.python_backends.common.pulse import seen, seen_models
from swiftdiffusion.python_backends.launcher import Supervisor, Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swiftdiffusion.python_backends.launcher import ServerDiedError, TritonServer

LOOK_EVERY_S = 0.2
WHOLE_WITHIN_S = 60.0


def is_whole(server: TritonServer) -> bool:
    """Whether every process of its models is up."""
    return all(each.is_up for model in seen_models(server.runtime) for each in seen(model, server.runtime))


class Supervised:
    """All of them in this process."""

    def __init__(self) -> None:
        """Has none yet."""
        self._supervisors: list[Supervisor] = []
        self._watchers: dict[TritonServer, Watcher] = {}
        self._mutex = threading.Lock()
        self._known: list[ServerDiedError] = []

    @contextmanager
    def keep(self, server: TritonServer) -> Iterator[None]:
        """Waits until a server that was started is ready, and keeps it running."""
        watcher = Watcher(server, print)
        supervisor = Supervisor(server, watcher, print)
        supervisor.wait_ready(server.wait_ready)
        self._supervisors.append(supervisor)
        self._watchers[server] = watcher
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(LOOK_EVERY_S):
                with self._mutex:
                    supervisor.check()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._supervisors.remove(supervisor)
            del self._watchers[server]

    def wait_whole(self) -> None:
        """Until whatever was killed is there again."""
        for server, watcher in self._watchers.items():  # what is down has no process between two tries to load it
            wait_for(
                lambda server=server, watcher=watcher: is_whole(server) and not watcher.status.down, WHOLE_WITHIN_S
            )

    def begin_test(self) -> None:
        """All run now."""
        self._known = self._ends()

    def aborted(self) -> bool:
        """Whether one has ended since, as Triton does when a process dies with a lock that they share."""
        return any(end.status == -signal.SIGABRT for end in self._ends() if end not in self._known)

    def _ends(self) -> list[ServerDiedError]:
        with self._mutex:
            for supervisor in self._supervisors:
                supervisor.check()
            return [end for supervisor in self._supervisors for end in supervisor.ends]


SUPERVISED = Supervised()
"""Of this process."""
