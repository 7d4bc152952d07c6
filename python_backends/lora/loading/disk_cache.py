"""Fetched LoRA files on disk, by content: they survive restarts, and servers may share them. Needs no torch."""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...common.filesystem import sha256_of
from ...shared_memory.leased_files import EvictedError, Lease, LeasedFiles
from .content_index import ContentIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
ABANDONED_AFTER_S = 3600.0
"""Half-written files that nobody wrote to for so long are of killed writers."""


class HeldFile:
    """A file that is not evicted while this is open; a context manager.

    Attributes:
        path: The file.
        sha256: Its content's hash.
    """

    def __init__(self, lease: Lease, sha256: str, *, remove: bool = False) -> None:
        """Made by `DiskCache`; a file that is to be removed at the end never was in the cache."""
        self.path, self.sha256 = lease.path, sha256
        self._lease, self._remove = lease, remove

    def close(self) -> None:
        """Gives the file up; may be called again."""
        if self._remove:
            self.path.unlink(missing_ok=True)
        self._lease.close()

    def __enter__(self) -> HeldFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DiskCache:
    """Files named by their SHA-256, and an index that knows which content an entry of the catalogue had.

    Invariant: the files in `content/` stay within the bound (downloads in flight lie in `partial/` and do not count);
    the least recently used go first, held ones never. All writing is to a temporary name and then renamed.
    """

    def __init__(
        self, directory: Path, max_bytes: int, on_eviction: Callable[[int], None] = lambda _bytes: None
    ) -> None:
        """Opens the cache.

        Args:
            directory: Made if need be.
            max_bytes: The bound.
            on_eviction: Called with the size of each file that goes.
        """
        self.directory, self.max_bytes = directory, max_bytes
        self._contents = LeasedFiles(directory / "content", SUFFIX, on_eviction)
        self._partial = directory / "partial"
        self._partial.mkdir(mode=0o700, exist_ok=True)
        with self._contents.writing():
            self._index = ContentIndex(directory / "index", self._is_there)
        self._verified: dict[str, tuple[int, int]] = {}
        self._remove_abandoned()

    def has(self, identity: str, sha256: str | None = None) -> bool:
        """Whether `find`, which may take long, is likely to give the file of an entry."""
        sha256 = self._index.get(identity) if sha256 is None else sha256
        return sha256 is not None and self._is_there(sha256)

    def find(self, identity: str, sha256: str | None = None) -> HeldFile | None:
        """The file of an entry, which counts as used now; None if it has to be fetched.

        A file that this process takes into use for the first time is hashed; one that is corrupt is removed.

        Args:
            identity: The entry's.
            sha256: Its content's hash where it is known beforehand.
        """
        sha256 = self._index.get(identity) if sha256 is None else sha256
        held = None if sha256 is None else self._hold(sha256)
        if sha256 is None or held is None:
            return None
        if self._is_intact(held.path, sha256):
            return held
        logger.warning("%s is corrupt and removed", held.path)
        held.close()
        with self._contents.writing():
            if not self._is_intact(held.path, sha256):  # else another server has put a good one there meanwhile
                held.path.unlink(missing_ok=True)
        return None

    @contextmanager
    def partial(self) -> Iterator[Path]:
        """A name for a file that is being written, for the time of a `with` block."""
        path = self._partial / secrets.token_hex(16)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def add(self, identity: str, partial: Path, sha256: str) -> HeldFile:
        """Takes a written file in; if there is no room for it, it is there for the time of holding it.

        Args:
            identity: The entry that has this content.
            partial: The written file, which is moved.
            sha256: Its hash.
        """
        self._remove_abandoned()
        path, size = self._contents.path(sha256), partial.stat().st_size
        with self._contents.writing():
            if self._is_intact(path, sha256):
                partial.unlink()
            elif size <= self.max_bytes and self._contents.evict(self.bytes_used() + size - self.max_bytes):
                partial.rename(path)
                self._verified[sha256] = _stamp(path)
            else:
                return self._apart(partial, sha256)
            self._index.put(identity, sha256)
            return HeldFile(Lease(path), sha256)  # nobody else evicts meanwhile

    def shrink(self) -> bool:
        """Evicts the less recently used half, because the disk is full; whether anything went."""
        with self._contents.writing():
            used = self.bytes_used()
            return used > 0 and self._contents.evict((used + 1) // 2)

    def drop(self, sha256: str) -> None:
        """Removes a content: it turned out to be of no use."""
        self._contents.path(sha256).unlink(missing_ok=True)

    def bytes_used(self) -> int:
        """Bytes of all contents."""
        return sum(self._contents.sizes().values())

    def _hold(self, sha256: str) -> HeldFile | None:
        try:
            return HeldFile(Lease(self._contents.path(sha256)), sha256)
        except EvictedError:
            return None

    def _apart(self, partial: Path, sha256: str) -> HeldFile:
        logger.warning("%s has no room for %d bytes, of %d", self.directory, partial.stat().st_size, self.max_bytes)
        path = partial.with_suffix(".apart")
        partial.rename(path)
        return HeldFile(Lease(path), sha256, remove=True)

    def _is_intact(self, path: Path, sha256: str) -> bool:
        try:
            stamp = _stamp(path)
            if self._verified.get(sha256) != stamp:
                if sha256_of(path) != sha256:
                    return False
                self._verified[sha256] = stamp
        except FileNotFoundError:
            return False
        return True

    def _is_there(self, sha256: str) -> bool:
        return self._contents.path(sha256).is_file()

    def _remove_abandoned(self) -> None:
        for path in self._partial.iterdir():
            try:
                if time.time() - path.stat().st_mtime > ABANDONED_AFTER_S:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue


def _stamp(path: Path) -> tuple[int, int]:
    """What tells one file of a name from another; not its mtime, which is its last use."""
    status = path.stat()
    return status.st_ino, status.st_size
