"""What `vae_decoder` reads of requests that a denoiser has handed over stays until it has been read. Needs no torch."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import ExitStack

    from ..backend.request_ends import RequestEnds

LOOK_EVERY_S = 0.5
"""After requests that have ended."""


class HandedOver:
    """Leases that outlive their runs: given up once the request has ended, in whatever way.

    `RequestEnds` knows of it, of requests that died with a process too, and after ten minutes of those that Triton
    dropped on the way. So no lease stays for ever, whoever dies.
    """

    def __init__(self, ends: RequestEnds) -> None:
        """Holds nothing yet.

        Args:
            ends: Of the denoiser.
        """
        self._ends = ends
        self._held: list[tuple[str, ExitStack]] = []
        self._mutex = threading.Lock()

    def keep(self, run_id: str, held: ExitStack) -> None:
        """Keeps what is held for a request, which has been handed on (`RequestEnds.hand_on`)."""
        with self._mutex:
            self._held.append((run_id, held))

    def give_up(self) -> None:
        """Gives up what was held for requests that have ended."""
        with self._mutex:
            ended = [each for each in self._held if self._ends.has_ended(each[0])]
            for each in ended:
                self._held.remove(each)
        for _, held in ended:
            held.close()

    def look_for_ended(self) -> None:
        """Gives it up from now on, in a thread: the last request's leases go without another request."""

        def look() -> None:
            while True:
                time.sleep(LOOK_EVERY_S)
                self.give_up()

        threading.Thread(target=look, name="handed over", daemon=True).start()
