"""Files in a directory that are evicted by last use, but never while somebody uses them. Needs no torch.

Who uses a file holds a shared lock on it (flock), and the evictor takes only what nobody has locked. So the kernel
counts the references, and drops those of a process that is killed.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOCK = "writer.lock"


class EvictedError(Exception):
    """The file has gone since its path was given out; making it again brings it back."""


class Lease:
    """A file that stays while this is open; a context manager.

    Attributes:
        path: The file, to be read or mapped.
    """

    def __init__(self, path: Path) -> None:
        """Takes the lease and notes the use.

        Raises:
            EvictedError: If the file has gone.
        """
        self.path = path
        try:
            self._descriptor: int | None = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise EvictedError(f"{path.name} is no longer in the cache") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            if os.fstat(self._descriptor).st_nlink == 0:  # evicted between open and lock
                raise EvictedError(f"{path.name} is no longer in the cache")
            # An explicit time, because the kernel's own clock ticks every few milliseconds.
            with suppress(OSError):  # on a file system that has become read-only, what is there can be read still
                os.utime(self._descriptor, ns=(time.time_ns(),) * 2)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the file up; may be called again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LeasedFiles:
    """A directory of files that can be leased, evicted and renamed into."""

    def __init__(self, directory: Path, suffix: str, on_eviction: Callable[[int], None]) -> None:
        """Opens the directory, made if need be.

        Args:
            directory: Where the files are.
            suffix: What their names end in; other files are somebody else's.
            on_eviction: Called with the size of each file that goes.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory, self._suffix, self._on_eviction = directory, suffix, on_eviction
        self.mutex = threading.RLock()

    def path(self, key: str) -> Path:
        """Where the file of a key is, if it is there."""
        return self._directory / f"{key}{self._suffix}"

    def sizes(self) -> dict[Path, int]:
        """Bytes of each file, least recently used first."""
        found = []
        for path in self._directory.iterdir():
            if path.name.endswith(self._suffix):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                found.append((status.st_mtime_ns, path, status.st_size))
        return {path: size for _, path, size in sorted(found)}

    def evict(self, excess: int) -> bool:
        """Removes the least recently used files so that `excess` bytes come free; none if that cannot be reached."""
        chosen: list[tuple[Path, int, int]] = []
        try:
            for path, size in self.sizes().items():
                if sum(size for _, size, _ in chosen) >= excess:
                    break
                descriptor = _lock_unleased(path)
                if descriptor is not None:
                    chosen.append((path, size, descriptor))
            enough = sum(size for _, size, _ in chosen) >= excess
            for path, size, _ in chosen if enough else ():
                path.unlink(missing_ok=True)
                self._on_eviction(size)
        finally:
            for _, _, descriptor in chosen:
                os.close(descriptor)
        return enough

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One writer at a time, among threads and processes; only they evict."""
        with self.mutex:
            descriptor = os.open(self._directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)


def _lock_unleased(path: Path) -> int | None:
    """A descriptor that holds the file's lock, so that nobody takes a lease; None if somebody has one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
