"""Which entries of the catalogue failed lately. Needs no torch."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Callable

REMEMBERED = 1024


class FailureMemory:
    """Which entries failed lately: those fail at once, for a time that doubles with each failure in a row."""

    def __init__(self, first_s: float = 2.0, most_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        """An empty memory.

        Args:
            first_s: How long the first failure counts.
            most_s: How long any failure counts at most.
            clock: Seconds that pass.
        """
        self._first_s, self._most_s, self._clock = first_s, most_s, clock
        self._failures: LRUCache[str, tuple[Exception, float, float]] = LRUCache(REMEMBERED)
        self._mutex = threading.Lock()

    def current(self, identity: str) -> Exception | None:
        """The failure that still counts, if there is one."""
        with self._mutex:
            failure = self._failures.get(identity)
        return failure[0] if failure is not None and self._clock() < failure[1] else None

    def failed(self, identity: str, error: Exception) -> None:
        """Notes a failure."""
        with self._mutex:
            previous = self._failures.get(identity)
            lasts = self._first_s if previous is None else min(2 * previous[2], self._most_s)
            self._failures[identity] = (error, self._clock() + lasts, lasts)

    def succeeded(self, identity: str) -> None:
        """Forgets the failures of an entry."""
        with self._mutex:
            self._failures.pop(identity, None)
