"""Fetches from stores whose clients know no timeouts. Needs no torch."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from fsspec.exceptions import FSTimeoutError

from .fetch_errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Callable


class AbandonableFetches:
    """Fetches with deadlines, each in a thread of its own that is left behind when the time is over.

    Invariant: while an abandoned fetch of a location hangs none starts for that location, and while `most` of them
    hang none starts at all.
    """

    def __init__(self, most: int) -> None:
        """No fetches yet.

        Args:
            most: Abandoned fetches from which on none starts; those that run then may be abandoned too.
        """
        self._most = most
        self._hanging: dict[Future[None], str] = {}
        self._mutex = threading.Lock()

    def run(self, location: str, fetch: Callable[[], None], deadline: float) -> None:
        """Makes a fetch and waits for it.

        Args:
            location: What it may hang at.
            fetch: Goes on by itself when it is abandoned; how it ends then, nobody learns.
            deadline: A time of `time.monotonic`.

        Raises:
            FSTimeoutError: If it has not ended by then.
            FetchError: If it was not even started.
            Exception: What it raises.
        """
        with self._mutex:
            if location in self._hanging.values():
                raise FetchError("timeout", "its store still holds up an earlier fetch of the file")
            if len(self._hanging) >= self._most:
                message = f"{self._most} fetches hang in stores that do not answer, which is the limit"
                raise FetchError("timeout", message)
        done: Future[None] = Future()
        threading.Thread(target=self._run, args=(fetch, done), name="lora-fetch", daemon=True).start()
        wait([done], max(deadline - time.monotonic(), 0.0))
        with self._mutex:
            if not done.done():
                self._hanging[done] = location
                raise FSTimeoutError
        done.result()

    def _run(self, fetch: Callable[[], None], done: Future[None]) -> None:
        error: Exception | None = None
        try:
            fetch()
        except Exception as raised:  # noqa: BLE001  it is raised where the fetch is waited for
            error = raised
        with self._mutex:
            self._hanging.pop(done, None)
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
