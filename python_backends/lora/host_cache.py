"""Canonical LoRAs in shared memory: one copy for all processes of a server, which map it. Needs no torch.

Who uses a file holds a shared lock on it (flock), and the evictor takes only what nobody has locked. So the kernel
counts the references, and drops those of a process that is killed.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .host_directory import host_cache_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

__all__ = ["EvictedError", "HostCache", "HostCacheFullError", "Lease", "Reservation", "host_cache_directory"]

SUFFIX, PARTIAL_SUFFIX, LOCK = ".safetensors", ".partial", "writer.lock"
POLL_S = 0.02
MIB = 2**20


class EvictedError(Exception):
    """The file has gone since its path was given out; loading the LoRA again brings it back."""


class HostCacheFullError(Exception):
    """There is no room, with the numbers.

    Attributes:
        for_ever: The LoRA is larger than the whole cache; else the room is in use and may come free.
    """

    def __init__(self, message: str, *, for_ever: bool) -> None:
        super().__init__(message)
        self.for_ever = for_ever


class Lease:
    """A file of the cache that stays while this is open; a context manager.

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
            raise EvictedError(f"{path.name} is no longer in the host cache") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            if os.fstat(self._descriptor).st_nlink == 0:  # evicted between open and lock
                raise EvictedError(f"{path.name} is no longer in the host cache")
            _touch(self._descriptor)
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Reservation:
    """Room in the cache for a file that is being written; a context manager, at whose end an unpublished file goes.

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
        return self._cache._publish(self, key)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cache._release(self)


class HostCache:
    """A byte-bounded directory of `KEY.safetensors` files; the least recently used go first, leased ones never.

    Invariant: published files and reservations together stay within the bound; writers take turns to make room.
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
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory, self.max_bytes = directory, max_bytes
        self._wait_s, self._on_eviction = wait_s, on_eviction
        self._mutex = threading.RLock()
        self._reserved: dict[Path, int] = {}
        self._count = 0
        self._remove_abandoned()

    def open(self, path: Path) -> Lease:
        """A lease on a file of the cache.

        Raises:
            EvictedError: If it has gone.
        """
        return Lease(path)

    def find(self, key: str) -> Path | None:
        """The file of that key, which counts as used now; None if there is none."""
        path = self._path(key)
        try:
            with Lease(path):
                return path
        except EvictedError:
            return None

    @contextmanager
    def reserve(self, expected_bytes: int) -> Iterator[Reservation]:
        """Room for a file that is about to be written, for the time of a `with` block.

        Args:
            expected_bytes: Its likely size; `publish` corrects it.

        Raises:
            HostCacheFullError: If it is larger than the cache, or the room was in use for all of the waiting time.
        """
        with self._mutex:
            self._count += 1
            name = f"{os.getpid()}-{threading.get_native_id()}-{self._count}{PARTIAL_SUFFIX}"
        with Reservation(self, self.directory / name) as reservation:
            self._claim(reservation.path, expected_bytes)
            yield reservation

    def bytes_used(self) -> int:
        """Bytes of all published files and reservations."""
        with self._mutex:
            sizes = {path: size for path, size, _ in self._files()}
            for path, reserved in self._reserved.items():
                sizes[path] = max(reserved, sizes.get(path, 0))
        return sum(sizes.values())

    def drop(self, key: str) -> None:
        """Removes a file; who has it open keeps what they have mapped."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}{SUFFIX}"

    def _publish(self, reservation: Reservation, key: str) -> Path:
        path = self._path(key)
        self._claim(reservation.path, reservation.path.stat().st_size)
        with self._writing():
            if path.exists():  # somebody else was faster; a file that is leased is never replaced
                reservation.path.unlink()
            else:
                reservation.path.chmod(0o400)
                os.utime(reservation.path, ns=(time.time_ns(),) * 2)
                reservation.path.rename(path)
            self._reserved.pop(reservation.path, None)
        return path

    def _release(self, reservation: Reservation) -> None:
        with self._mutex:
            reservation.path.unlink(missing_ok=True)
            self._reserved.pop(reservation.path, None)

    def _claim(self, path: Path, size: int) -> None:
        """Reserves `size` bytes for a file, in place of what was reserved for it."""
        if size > self.max_bytes:
            raise HostCacheFullError(
                f"it takes {_mib(size)}, more than the whole host cache of {_mib(self.max_bytes)}", for_ever=True
            )
        deadline = time.monotonic() + self._wait_s
        while True:
            with self._writing():
                before = self._reserved.pop(path, 0)
                others = self.bytes_used() - (path.stat().st_size if path.exists() else 0)
                if self._evict(others + size - self.max_bytes):
                    self._reserved[path] = size
                    return
                self._reserved[path] = before
            if time.monotonic() > deadline:
                raise HostCacheFullError(
                    f"it takes {_mib(size)}; of the host cache's {_mib(self.max_bytes)}, {_mib(others)} were in use "
                    f"for {self._wait_s:g} s",
                    for_ever=False,
                )
            time.sleep(POLL_S)

    def _evict(self, excess: int) -> bool:
        """Removes the least recently used files until `excess` bytes are free; whether it came to that."""
        if excess <= 0:
            return True
        for path, size, _ in sorted(self._files(), key=lambda file: file[2]):
            if path.suffix == SUFFIX and _remove_unused(path):
                self._on_eviction(size)
                excess -= size
                if excess <= 0:
                    return True
        return False

    def _remove_abandoned(self) -> None:
        """Removes what writers that were killed left half written."""
        for path in self.directory.glob(f"*{PARTIAL_SUFFIX}"):
            pid = path.name.partition("-")[0]
            if not (pid.isdecimal() and Path(f"/proc/{pid}").exists()):
                path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[Path, int, int]]:
        """Path, size and time of last use of each file of LoRAs."""
        files = []
        for path in self.directory.iterdir():
            if path.suffix in (SUFFIX, PARTIAL_SUFFIX):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                files.append((path, status.st_size, status.st_mtime_ns))
        return files

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time, among threads and processes."""
        with self._mutex:
            descriptor = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)


def _remove_unused(path: Path) -> bool:
    """Removes a file unless somebody has it leased."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _touch(descriptor: int) -> None:
    os.utime(descriptor, ns=(time.time_ns(),) * 2)  # explicit: the kernel's own clock ticks every few milliseconds


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
