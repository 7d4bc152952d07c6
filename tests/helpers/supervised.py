"""Servers that are started again when they end, as by `swiftdiffusion serve`, under tests that end processes."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from swiftdiffusion.python_backends.launcher import Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swiftdiffusion.python_backends.launcher import TritonServer

LOOK_EVERY_S = 0.2


class Supervised:
    """All of them in this process."""

    def __init__(self) -> None:
        """Has none yet."""
        self._supervisors: list[Supervisor] = []
        self._mutex = threading.Lock()
        self._ends = 0

    @contextmanager
    def keep(self, server: TritonServer) -> Iterator[None]:
        """Waits until a server that was started is ready, and keeps it running."""
        supervisor = Supervisor(server, print)
        supervisor.wait_ready(server.wait_ready)
        self._supervisors.append(supervisor)
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(LOOK_EVERY_S):
                self._check(supervisor)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._supervisors.remove(supervisor)

    def begin_test(self) -> None:
        """All run now, and none has ended since."""
        for supervisor in self._supervisors:
            self._check(supervisor)
        self._ends = 0

    def ended_meanwhile(self) -> bool:
        """Whether one has ended since."""
        for supervisor in self._supervisors:
            self._check(supervisor)
        return self._ends > 0

    def _check(self, supervisor: Supervisor) -> None:
        with self._mutex:
            self._ends += supervisor.check()
