"""Threads for loads."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class DaemonWorkers:
    """A bounded number of threads that end with the process, whatever they wait for.

    Those of `concurrent.futures` are waited for: a stalled store would keep a server from ending.
    """

    def __init__(self, count: int, name: str) -> None:
        """Starts `count` threads, named for what they do."""
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._count = count
        for index in range(count):
            threading.Thread(target=self._run, name=f"{name}-{index}", daemon=True).start()

    def submit(self, work: Callable[[], None]) -> None:
        """Has work done, which must not raise, when a thread is free."""
        self._queue.put(work)

    def close(self) -> None:
        """Lets each thread end once it has done what was submitted before; what is submitted later is not done."""
        for _ in range(self._count):
            self._queue.put(None)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
