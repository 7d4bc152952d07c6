"""One watcher per server: two would load each model twice."""

import fcntl
import os
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
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._file, 20).decode("ascii", "replace") or "?"
            self.close()
            raise LauncherError(f"tritonserver is watched already, by process {holder}") from error
        os.truncate(self._file, 0)
        os.write(self._file, str(os.getpid()).encode("ascii"))

    def close(self) -> None:
        """Lets another one watch."""
        os.close(self._file)
