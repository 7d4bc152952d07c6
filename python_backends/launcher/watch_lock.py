"""One watcher per server: two would load each model twice."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from .errors import LauncherError
from .running import WATCH_ROOM


class WatchLock:
    """Held by the process that watches a server until that closes it or ends, also while a signal stops it.

    Args:
        home: the server's.

    Raises:
        LauncherError: another process holds it.
    """

    def __init__(self, home: Path) -> None:
        path = home / WATCH_ROOM / "lock"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with self._file:
                raise LauncherError(f"tritonserver is watched already, by process {self._file.read()}") from error
        with suppress(OSError):  # a full disk: nobody learns who it is
            self._file.truncate()
            self._file.write(str(os.getpid()))
            self._file.flush()

    def close(self) -> None:
        """Lets another one watch."""
        self._file.close()
