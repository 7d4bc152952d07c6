"""LoRAs by tier: host cache, over disk cache, over the catalogue's locations. Needs no torch.

One load however many ask, and nothing of a refused file remains.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cachetools import LRUCache

from ..errors import InvalidRequestError, LoraUnavailableError, RequestError, UnexpectedError
from .fetching import FailureMemory, Fetcher, FetchError, sha256_of
from .host_cache import HostCache, HostCacheFullError
from .tickets import LoadedLora
from .workers import DaemonWorkers

if TYPE_CHECKING:
    from collections.abc import Callable

    from .catalogue import CatalogueEntry
    from .disk_cache import DiskCache

logger = logging.getLogger(__name__)

MIB = 2**20
REMEMBERED_CONTENTS, REMEMBERED_REFUSALS = 65_536, 4096


class StoreObserver:
    """What a store tells about each answer; for metrics. This one ignores it."""

    def loaded(self, source: str, seconds: float) -> None:
        """A request got its LoRA from a tier, so long after it asked."""

    def refused(self, reason: str) -> None:
        """A request did not get its LoRA, for a class of reasons."""


@dataclass(frozen=True)
class _Loaded:
    path: Path
    source: str


class _LoadError(Exception):
    """Why a load ended, before it is known for whom: requests with other names for it may have joined."""

    def __init__(self, kind: str, reason: str, error_type: type[RequestError]) -> None:
        super().__init__(reason)
        self.kind, self.error_type = kind, error_type

    def bare(self) -> _LoadError:
        """The same without traceback and cause, whose frames hold a file's tensors: to be remembered."""
        return _LoadError(self.kind, str(self), self.error_type)

    def for_client(self, name: str) -> RequestError:
        return self.error_type(f"LORAS names {json.dumps(name, ensure_ascii=False)}: {self}")


class LoraStore:
    """Gives out LoRAs of the catalogue as canonical files of the host cache.

    Invariants: at most one load runs for an identity; what `_contents` knows of an identity holds for ever; a content
    in `_refusals` is in neither cache.
    """

    def __init__(
        self,
        disk_cache: DiskCache,
        host_cache: HostCache,
        fetcher: Fetcher,
        canonicalise: Callable[[Path, Path], None],
        *,
        max_file_bytes: int,
        workers: int = 4,
        failures: FailureMemory | None = None,
        observer: StoreObserver | None = None,
    ) -> None:
        """Starts the worker threads.

        Args:
            disk_cache: Keeps what was fetched.
            host_cache: Where canonical LoRAs are published.
            fetcher: For remote locations.
            canonicalise: Checks a hostile file and writes its canonical form to the second path; raises a RequestError
                with a sentence about the file.
            max_file_bytes: Largest local file; the fetcher has its own limit.
            workers: Loads at a time.
            failures: Remembers failed entries.
            observer: Told about each answer.
        """
        self._disk, self._host, self._fetcher, self._canonicalise = disk_cache, host_cache, fetcher, canonicalise
        self._max_file_bytes = max_file_bytes
        self._failures, self._observer = failures or FailureMemory(), observer or StoreObserver()
        self._mutex = threading.Lock()
        self._in_flight: dict[str, Future[_Loaded]] = {}
        self._contents: LRUCache[str, str] = LRUCache(REMEMBERED_CONTENTS)
        self._refusals: LRUCache[str, _LoadError] = LRUCache(REMEMBERED_REFUSALS)
        self._workers = DaemonWorkers(workers)

    def load(self, entry: CatalogueEntry) -> Future[LoadedLora]:
        """Starts loading an entry, or joins the load of it in flight; what is in the host cache is there at once.

        Returns:
            A future of the LoRA. Its exception is a RequestError that names the entry.
        """
        answer: Future[LoadedLora] = Future()
        start = time.perf_counter()
        shared = self._known(entry.identity) or self._loading(entry)
        shared.add_done_callback(lambda done: self._settle(answer, done, entry.name, start))
        return answer

    def close(self) -> None:
        """Starts no more loads; those that run are left to end by themselves."""
        self._workers.close()

    def _known(self, identity: str) -> Future[_Loaded] | None:
        """The answer that needs no work: from the host cache, or a failure that is remembered."""
        known: Future[_Loaded] = Future()
        failure = self._failures.current(identity)
        with self._mutex:
            content = self._contents.get(identity)
            refusal = None if content is None else self._refusals.get(content)
        if failure is not None or refusal is not None:
            known.set_exception(failure or refusal)
            return known
        path = None if content is None else self._host.find(content)
        if path is None:
            return None
        known.set_result(_Loaded(path, "host"))
        return known

    def _loading(self, entry: CatalogueEntry) -> Future[_Loaded]:
        with self._mutex:
            shared = self._in_flight.get(entry.identity)
            if shared is None:
                shared = self._in_flight[entry.identity] = Future()
                self._workers.submit(lambda: self._work(entry, shared))
        return shared

    def _work(self, entry: CatalogueEntry, shared: Future[_Loaded]) -> None:
        result: _Loaded | _LoadError
        try:
            result = self._load_remote(entry) if entry.is_remote else self._load_local(entry)
            self._failures.succeeded(entry.identity)
        except _LoadError as error:
            result = error
        except Exception:  # a worker must not die, and its requests must not wait for ever
            logger.exception("loading the LoRA %s failed", entry.name)
            reason = "loading it failed unexpectedly; the server's log has the reason"
            result = _LoadError("unexpected", reason, UnexpectedError)
        with self._mutex:
            del self._in_flight[entry.identity]
        if isinstance(result, _LoadError):
            shared.set_exception(result)
        else:
            shared.set_result(result)

    def _load_remote(self, entry: CatalogueEntry) -> _Loaded:
        source, held = "disk", self._disk.find(entry.identity, entry.sha256)
        if held is None:
            source = "remote"
            with self._disk.partial() as partial:
                try:
                    content = self._fetcher.fetch(entry.location, partial, entry.sha256)
                except FetchError as error:
                    raise self._remember(entry, _LoadError(error.kind, str(error), LoraUnavailableError)) from error
                held = self._disk.add(entry.identity, partial, content)
        with held:
            try:
                loaded = self._publish(held.path, held.sha256, source)
            except _LoadError as error:
                if self._is_refused(held.sha256):
                    self._disk.drop(held.sha256)
                    raise self._remember(entry, error) from error  # for a while: its store may get a better file
                raise
        self._learn(entry.identity, held.sha256)
        return loaded

    def _load_local(self, entry: CatalogueEntry) -> _Loaded:
        path = Path(entry.location)
        try:
            before = path.stat()
            if not stat.S_ISREG(before.st_mode):
                raise _LoadError("not_found", "its place in the catalogue is not a file", LoraUnavailableError)
            if before.st_size > self._max_file_bytes:
                size, most = before.st_size / MIB, self._max_file_bytes / MIB
                reason = f"its file has {size:.1f} MiB; allowed: at most {most:.1f} MiB"
                raise self._remember(entry, _LoadError("too_large", reason, InvalidRequestError))
            content = sha256_of(path)
            if entry.sha256 not in (None, content):
                reason = f"its file hashes to {content}; the catalogue says {entry.sha256}"
                raise self._remember(entry, _LoadError("hash_mismatch", reason, LoraUnavailableError))
            try:
                return self._publish(path, content, "disk", lambda: _state(before) == _state(path.stat()))
            finally:
                if _state(before) == _state(path.stat()):  # else what was read need not be what was hashed
                    self._learn(entry.identity, content)
        except OSError as error:
            logger.warning("%s: %s", path, error)
            raise _LoadError("not_found", "its file cannot be read", LoraUnavailableError) from error

    def _publish(
        self, source_file: Path, content: str, source: str, is_unchanged: Callable[[], bool] = lambda: True
    ) -> _Loaded:
        """Makes a file canonical in the host cache, unless its content is there or is known to be bad.

        `is_unchanged` tells whether what was read is what was hashed.
        """
        with self._mutex:
            refusal = self._refusals.get(content)
        if refusal is not None:
            raise refusal.bare()
        path = self._host.find(content)
        if path is not None:
            return _Loaded(path, "host")
        try:
            with self._host.reserve(min(source_file.stat().st_size, self._host.max_bytes)) as reservation:
                self._canonicalise(source_file, reservation.path)
                if not is_unchanged():
                    raise _LoadError("changed", "its file changed while it was read; try again", LoraUnavailableError)
                return _Loaded(reservation.publish(content), source)
        except RequestError as error:
            if not is_unchanged():
                raise _LoadError(
                    "changed", "its file changed while it was read; try again", LoraUnavailableError
                ) from error
            raise self._refuse(content, _LoadError("content", str(error), type(error))) from error
        except HostCacheFullError as error:
            if error.for_ever:
                raise self._refuse(content, _LoadError("too_large", str(error), InvalidRequestError)) from error
            raise _LoadError("no_room", str(error), LoraUnavailableError) from error

    def _refuse(self, content: str, failed: _LoadError) -> _LoadError:
        with self._mutex:
            self._refusals[content] = failed.bare()
        return failed

    def _is_refused(self, content: str) -> bool:
        with self._mutex:
            return content in self._refusals

    def _learn(self, identity: str, content: str) -> None:
        with self._mutex:
            self._contents[identity] = content

    def _remember(self, entry: CatalogueEntry, failed: _LoadError) -> _LoadError:
        self._failures.failed(entry.identity, failed.bare())
        return failed

    def _settle(self, answer: Future[LoadedLora], done: Future[_Loaded], name: str, start: float) -> None:
        seconds, error = time.perf_counter() - start, done.exception()
        if isinstance(error, _LoadError):
            answer.set_exception(error.for_client(name))
            self._observer.refused(error.kind)
        else:
            loaded = done.result()
            answer.set_result(LoadedLora(loaded.path, loaded.source, seconds * 1000))
            self._observer.loaded(loaded.source, seconds)


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino
