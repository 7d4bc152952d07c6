"""A server that ends by itself is started again.

Triton's Python backend has locks in memory that it shares with every model's process. If one dies while it holds such
a lock, the next to take it ends the server (seen with 2.51), and nothing in a model's code can prevent that.
"""

import time
from collections.abc import Callable

from .errors import ServerDiedError
from .triton_server import TritonServer

MOST_ENDS, WITHIN_S = 3, 60.0
"""A server that ends so often in so many seconds is not started again."""

FIRST_PAUSE_S = 1.0
"""Before the first start; doubled before the next ones."""


class Supervisor:
    """Keeps one server running, on the ports that it has."""

    def __init__(
        self, server: TritonServer, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Watches nothing by itself: `check` has to be called.

        Args:
            server: one that was started.
            say: told in sentences of what happens.
            clock: seconds.
        """
        self._server, self._say, self._clock = server, say, clock
        self._ends: list[float] = []

    def wait_ready(self, wait: Callable[[], None]) -> None:
        """Waits for the first start.

        Args:
            wait: the server's `wait_ready`, or what shows it.

        Raises:
            ServerDiedError: it ended with an exit status, as it does for options that it refuses; or as `check`.
            LauncherError: as `check`.
        """
        try:
            wait()
        except ServerDiedError as error:
            if error.status >= 0:
                raise
            self._start_again(error)

    def check(self) -> bool:
        """If the server has ended starts it again, and waits until it is ready; whether it had.

        Raises:
            ServerDiedError: it ended for the third time in a minute.
            LauncherError: it does not get ready again.
        """
        try:
            self._server.check_alive()
        except ServerDiedError as error:
            self._start_again(error)
            return True
        return False

    def _start_again(self, ended: ServerDiedError) -> None:
        while True:
            now = self._clock()
            self._ends = [*(end for end in self._ends if now - end < WITHIN_S), now]
            if len(self._ends) >= MOST_ENDS:
                self._say(f"it ended {MOST_ENDS} times in {WITHIN_S:.0f} s and is not started again")
                raise ended
            pause = FIRST_PAUSE_S * 2 ** (len(self._ends) - 1)
            self._say(f"{ended}\nit is started again in {pause:.0f} s")
            time.sleep(pause)
            self._server.start_again()
            try:
                self._server.wait_ready()
            except ServerDiedError as error:
                ended = error
            else:
                self._say(f"ready again: pid {self._server.pid}")
                return
