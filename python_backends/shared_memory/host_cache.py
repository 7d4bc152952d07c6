"""Files in shared memory, such as LoRAs and pictures: one copy for all processes of a server, which map it."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from ..common.processes import is_alive, namespace
from ..common.sentences import mib
from .host_directory import host_cache_directory
from .leased_files import EvictedError, Lease, LeasedFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["EvictedError", "HostCache", "HostCacheFullError", "Lease", "Reservation", "host_cache_directory"]

SUFFIX, PARTIAL_SUFFIX = ".safetensors", ".partial"
POLL_S = 0.02
TEMPORARY, ABANDONED_AFTER_S = ".tmp*", 60.0
"""safetensors writes under such a name and then renames; what nobody has written to for so long is left over."""


class HostCacheFullError(Exception):
    """There is no room, with the numbers.

    Attributes:
        for_ever: The file is larger than the whole cache; else the room is in use and may come free.
    """

    def __init__(self, message: str, *, for_ever: bool) -> None:
        super().__init__(message)
        self.for_ever = for_ever


class Reservation:
    """Room in the cache for a file that is being written: see `HostCache.reserve`.

    Attributes:
        path: Where to write it.
    """

    def __init__(self, cache: HostCache, path: Path) -> None:
        """Made by `HostCache.reserve`."""
        self.path = path
        self._cache = cache

    def publish(self, key: str) -> Path:
        """Makes the written file the cache's one of that key, making more room if it grew beyond what was reserved.

        Raises:
            HostCacheFullError: If there is no room.
        """
        return self._cache._publish(self.path, key)


class HostCache:
    """A byte-bounded directory of `KEY.safetensors` files; the least recently used go first, leased ones never.

    Invariant: published files and reservations together stay within the bound; writers take turns to make room. Where
    the machine itself has less than the bound (containers often have little shared memory), that counts.
    """

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        *,
        wait_s: float = 30.0,
        on_eviction: Callable[[int], None] = lambda _bytes: None,
    ) -> None:
        """Opens the cache.

        Args:
            directory: Made if need be; `host_cache_directory()` for the server's.
            max_bytes: The bound.
            wait_s: How long to wait for room that is in use.
            on_eviction: Called with the size of each file that goes.
        """
        self.directory, self.max_bytes, self._wait_s = directory, max_bytes, wait_s
        self._files = LeasedFiles(directory, SUFFIX, on_eviction)
        self._reserved: dict[Path, int] = {}
        self._count = 0
        self._remove_abandoned()

    def find(self, key: str) -> Path | None:
        """The file of that key, which counts as used now; None if there is none."""
        path = self._files.path(key)
        try:
            with Lease(path):
                return path
        except EvictedError:
            return None

    @contextmanager
    def reserve(self, expected_bytes: int) -> Iterator[Reservation]:
        """Room for a file that is about to be written, for the time of a `with` block; one that is not published goes.

        Args:
            expected_bytes: Its likely size; `publish` corrects it.

        Raises:
            HostCacheFullError: If it is larger than the cache, the room was in use for all of the waiting time, or
                others took it while it was written.
        """
        self._remove_abandoned()
        with self._files.mutex:
            self._count += 1
            name = f"{os.getpid()}-{threading.get_native_id()}-{self._count}-{namespace()}{PARTIAL_SUFFIX}"
        partial = self.directory / name
        try:
            self._claim(partial, expected_bytes)
            yield Reservation(self, partial)
        except (OSError, SafetensorError) as error:
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            message = f"it takes {mib(expected_bytes)}; the machine has no room for it; try again later"
            raise HostCacheFullError(message, for_ever=False) from error
        finally:
            with self._files.mutex:
                partial.unlink(missing_ok=True)
                self._reserved.pop(partial, None)

    def bytes_used(self) -> int:
        """Bytes of all published files and reservations."""
        with self._files.mutex:
            partial = dict.fromkeys(self._reserved, 0)
            for path in self.directory.glob(f"*{PARTIAL_SUFFIX}"):
                partial[path] = _size(path)
            published = sum(self._files.sizes().values())
            return published + sum(max(size, self._reserved.get(path, 0)) for path, size in partial.items())

    def _publish(self, partial: Path, key: str) -> Path:
        self._claim(partial, _size(partial))
        path = self._files.path(key)
        with self._files.writing():
            if path.exists():  # somebody else was faster; a file that is leased is never replaced
                partial.unlink()
            else:
                partial.chmod(0o400)
                os.utime(partial, ns=(time.time_ns(),) * 2)
                partial.rename(path)
            del self._reserved[partial]
        return path

    def _claim(self, partial: Path, size: int) -> None:
        """Reserves `size` bytes for a file, in place of what was reserved for it."""
        if size > self.max_bytes:
            raise HostCacheFullError(
                f"it takes {mib(size)}, more than the whole host cache of {mib(self.max_bytes)}", for_ever=True
            )
        deadline = time.monotonic() + self._wait_s
        while True:
            with self._files.writing():
                written = _size(partial)
                others = self.bytes_used() - max(self._reserved.get(partial, 0), written)
                free = shutil.disk_usage(self.directory).free
                if self._files.evict(max(others + size - self.max_bytes, size - written - free)):
                    self._reserved[partial] = size
                    return
            if time.monotonic() > deadline:
                raise HostCacheFullError(
                    f"it takes {mib(size)}; of the host cache's {mib(self.max_bytes)}, {mib(others)} were in use "
                    f"for {self._wait_s:g} s; the machine has {mib(free)} free for it; try again later",
                    for_ever=False,
                )
            time.sleep(POLL_S)

    def _remove_abandoned(self) -> None:
        """Removes what writers that were killed left half written."""
        for path in self.directory.glob(f"*{PARTIAL_SUFFIX}"):
            pid = path.name.partition("-")[0]
            is_written = pid.isdecimal() and is_alive(int(pid))
            if not is_written if path.stem.endswith(f"-{namespace()}") else _is_left(path):
                path.unlink(missing_ok=True)
        for path in self.directory.glob(TEMPORARY):
            if _is_left(path):
                path.unlink(missing_ok=True)


def _is_left(path: Path) -> bool:
    """Whether nobody has written to a file for so long that nobody will."""
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_AFTER_S
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
