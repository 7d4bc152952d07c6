"""A server that ends by itself is started again; models of it that die are loaded again.

Triton's Python backend has locks in memory that it shares with every model's process. If one dies while it holds such
a lock, the next to take it ends the server (seen with 2.51), and nothing in a model's code can prevent that.
"""

import time
from collections.abc import Callable

from .errors import ModelLoadError, ServerDiedError
from .triton_server import TritonServer
from .watcher import Watcher

MOST_ENDS, WITHIN_S = 3, 60.0
"""A server that ends so often in so many seconds of serving is not started again; loading does not count as serving."""

FIRST_PAUSE_S = 1.0
"""Before the first start; doubled before the next ones."""


class Supervisor:
    """Keeps one server running, on the ports that it has, and its models.

    Attributes:
        ends: all that there were.
    """

    def __init__(
        self,
        server: TritonServer,
        watcher: Watcher,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Watches nothing by itself: `check` has to be called.

        Args:
            server: one that was started.
            watcher: who heals its models.
            say: told in sentences of what happens.
            clock: seconds.
            pause: waits for so many.
        """
        self.ends: list[ServerDiedError] = []
        self._server, self._watcher, self._say, self._clock, self._pause = server, watcher, say, clock, pause
        self._served_s: list[float] = []  # before each end
        self._ready_at: float | None = None

    def wait_ready(self, wait: Callable[[Callable[[], object]], None]) -> None:
        """Waits for the first start.

        Args:
            wait: the server's `wait_ready`, or what shows it; given what is to be done meanwhile.

        Raises:
            ServerDiedError: it ended with an exit status, as it does for options that it refuses; or as `check`.
            LauncherError: as `check`.
        """
        try:
            wait(self._watcher.look)
        except ServerDiedError as error:
            if error.status >= 0:
                raise
            self._start_again(error, wait)
        else:
            self._ready_at = self._clock()

    @property
    def is_serving(self) -> bool:
        """Whether the server takes requests; not while it starts."""
        return self._ready_at is not None

    def look(self) -> None:
        """Looks after the models of a server that is not to be started again.

        Raises:
            ServerDiedError: it ended.
        """
        self._server.check_alive()
        self._watcher.look()

    def check(self) -> None:
        """If the server has ended starts it again, and waits until it is ready; else looks after its models.

        Raises:
            ServerDiedError: it ended for the third time in a minute.
            LauncherError: it does not get ready again.
        """
        try:
            self._server.check_alive()
        except ServerDiedError as error:
            self._start_again(error, self._server.wait_ready)
        self._watcher.look()

    def _start_again(self, ended: ServerDiedError | None, wait: Callable[[Callable[[], object]], None]) -> None:
        while ended is not None:
            pause_s = self._note(ended)
            self._say(f"{ended}\nit is started again in {pause_s:.0f} s")
            self._server.remove_remains()
            self._pause(pause_s)
            self._server.start_again()
            self._watcher.status.restarts += 1
            try:
                wait(self._watcher.look)
                ended = None
            except ServerDiedError as error:
                ended = error
            except ModelLoadError as error:  # they were there before: the others serve meanwhile
                self._say(str(error))
                ended = None
        self._ready_at = self._clock()
        self._say(f"ready again: pid {self._server.pid}")

    def _note(self, ended: ServerDiedError) -> float:
        """Counts an end; seconds until the server should be started again."""
        served_s = self._served_s[-1] if self._served_s else 0.0
        if self._ready_at is not None:
            served_s += self._clock() - self._ready_at
        self.ends.append(ended)
        self._ready_at = None
        self._served_s = [*(each for each in self._served_s if served_s - each < WITHIN_S), served_s]
        if len(self._served_s) >= MOST_ENDS:
            self._say(f"it ended {MOST_ENDS} times in {WITHIN_S:.0f} s of serving and is not started again")
            raise ended
        return FIRST_PAUSE_S * 2 ** (len(self._served_s) - 1)
