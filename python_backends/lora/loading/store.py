"""LoRAs by tier: host cache, over disk cache, over the catalogue's locations. Needs no torch.

One load however many ask.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from cachetools import LRUCache

from ...common.errors import InvalidRequestError, LoraUnavailableError, UnexpectedError, UnusableFileError
from ...common.filesystem import sha256_of
from ...common.sentences import mib
from ..files.outside_settings import OutsideSettings
from .adapter_config import RemoteAdapterConfigs, local_settings
from .failure_memory import FailureMemory
from .fetch_errors import FetchError, not_kept
from .load_results import Loaded, LoadError
from .outcomes import LoadedLora
from .publishing import Canonicalise, Publisher
from .workers import DaemonWorkers

if TYPE_CHECKING:
    from ...shared_memory.host_cache import HostCache
    from .catalogue import CatalogueEntry
    from .disk_cache import DiskCache, HeldFile
    from .fetching import Fetcher

logger = logging.getLogger(__name__)

REMEMBERED_CONTENTS = 65_536
FETCHES, PREPARATIONS = 8, 2
"""Files that are fetched at a time, and that are hashed, checked and made canonical."""

_Load = Generator[DaemonWorkers, None, Loaded]


class StoreObserver:
    """What a store tells about each answer; for metrics. This one ignores it."""

    def loaded(self, source: str, seconds: float) -> None:
        """A request got its LoRA from a tier, so long after it asked."""

    def refused(self, reason: str) -> None:
        """A request did not get its LoRA, for a class of reasons."""


class LoraStore:
    """Gives out LoRAs of the catalogue as canonical files of the host cache.

    A load is a generator that yields the workers who are to go on with it: what makes files ready keeps a processor
    busy, a fetch waits for its store, and neither is to wait for the other.

    Invariants: at most one load runs for an identity; what `_contents` knows of an identity holds for ever.
    """

    def __init__(
        self,
        disk_cache: DiskCache,
        host_cache: HostCache,
        fetcher: Fetcher,
        canonicalise: Canonicalise,
        *,
        max_file_bytes: int,
        base: str = "",
        failures: FailureMemory | None = None,
        observer: StoreObserver | None = None,
    ) -> None:
        """Starts the worker threads.

        Args:
            disk_cache: Keeps what was fetched.
            host_cache: Where canonical LoRAs are published.
            fetcher: For remote locations.
            canonicalise: See `Publisher`.
            base: See `Publisher`.
            max_file_bytes: Largest local file; the fetcher has its own limit.
            failures: Remembers failed entries.
            observer: Told about each answer.
        """
        self._disk, self._fetcher, self._publisher = disk_cache, fetcher, Publisher(host_cache, canonicalise, base)
        self._configs = RemoteAdapterConfigs(disk_cache, fetcher)
        self._max_file_bytes = max_file_bytes
        self._failures, self._observer = failures or FailureMemory(), observer or StoreObserver()
        self._mutex = threading.Lock()
        self._in_flight: dict[str, Future[Loaded]] = {}
        self._contents: LRUCache[str, str] = LRUCache(REMEMBERED_CONTENTS)
        self._fetching = DaemonWorkers(FETCHES, "lora-fetching")
        self._preparing = DaemonWorkers(PREPARATIONS, "lora-preparing")

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
        """Starts no more loads; what fetches that run bring is kept on disk and no longer given out."""
        self._fetching.close()
        self._preparing.close()

    def _known(self, identity: str) -> Future[Loaded] | None:
        """The answer that needs no work: from the host cache, or a failure that is remembered."""
        with self._mutex:
            content = self._contents.get(identity)
        failure = self._failures.current(identity) or (content and self._publisher.refusal(content))
        loaded = self._publisher.find(content) if content and not failure else None
        known: Future[Loaded] = Future()
        if failure:
            known.set_exception(failure)
        elif loaded:
            known.set_result(loaded)
        return known if known.done() else None

    def _loading(self, entry: CatalogueEntry) -> Future[Loaded]:
        with self._mutex:
            shared = self._in_flight.get(entry.identity)
            if shared is not None:
                return shared
            shared = self._in_flight[entry.identity] = Future()
        self._go_on(entry, self._load_remote(entry) if entry.is_remote else self._load_local(entry), shared)
        return shared

    def _go_on(self, entry: CatalogueEntry, load: _Load, shared: Future[Loaded]) -> None:
        """Does a load's work up to where other workers are to go on, or to its end."""
        result: Loaded | LoadError
        try:
            workers = next(load)
        except StopIteration as end:
            result = end.value
            self._failures.succeeded(entry.identity)
            for note in end.value.notes:
                logger.warning("the LoRA %s: %s", entry.name, note)
        except LoadError as error:
            result = error
        except OSError as error:
            logger.exception("the LoRA %s", entry.name)
            result = LoadError("disk", not_kept(error), LoraUnavailableError)
        except Exception:  # a worker must not die, and its requests must not wait for ever
            logger.exception("loading the LoRA %s failed", entry.name)
            reason = "loading it failed unexpectedly; the server's log has the reason"
            result = LoadError("unexpected", reason, UnexpectedError)
        else:
            workers.submit(lambda: self._go_on(entry, load, shared))
            return
        with self._mutex:
            del self._in_flight[entry.identity]
        if isinstance(result, LoadError):
            shared.set_exception(result)
        else:
            shared.set_result(result)

    def _load_remote(self, entry: CatalogueEntry) -> _Load:
        source, held = "disk", None
        if self._disk.has(entry.identity, entry.sha256):
            yield self._preparing
            held = self._held(entry)
        if held is None:
            yield self._fetching
            source, held = "remote", self._fetch(entry)
        with held:
            config = None
            if self._configs.wanted(entry, held.path):
                config = self._configs.kept(entry) if source == "disk" else None
                if config is None and source == "disk":
                    yield self._fetching
                config = self._fetch_config(entry) if config is None else config
            yield self._preparing
            outside = OutsideSettings(config, entry.alpha)
            content = outside.key(held.sha256)
            try:
                loaded = self._publisher.publish(held.path, content, source, outside)
            except LoadError as error:
                if issubclass(error.error_type, UnusableFileError):  # others may serve what does not fit here
                    self._disk.drop(held.sha256)
                if self._publisher.refusal(content) is not None:
                    self._remember(entry, error)  # for a while: its store may get a better file
                raise
        self._learn(entry.identity, content)
        return loaded

    def _held(self, entry: CatalogueEntry) -> HeldFile | None:
        """The file that was fetched before; None if it has to be fetched, once more if this server refused it."""
        held = self._disk.find(entry.identity, entry.sha256)
        if held is None or entry.sha256 is not None:
            return held
        outside = OutsideSettings(self._configs.kept(entry), entry.alpha)
        if self._publisher.refusal(outside.key(held.sha256)) is not None:
            held.close()
            return None
        return held

    def _fetch(self, entry: CatalogueEntry) -> HeldFile:
        while True:
            with self._disk.partial() as partial:
                try:
                    content = self._fetcher.fetch(entry.location, partial, entry.sha256)
                except FetchError as error:
                    failed = LoadError(error.kind, str(error), LoraUnavailableError)
                    if error.kind != "disk":
                        raise self._remember(entry, failed) from error
                    if not self._disk.shrink():
                        raise failed from error
                    continue
                return self._disk.add(entry.identity, partial, content)

    def _fetch_config(self, entry: CatalogueEntry) -> bytes | None:
        try:
            return self._configs.fetch(entry)
        except LoadError as failed:
            raise self._remember(entry, failed) from failed.__cause__

    def _load_local(self, entry: CatalogueEntry) -> _Load:
        yield self._preparing
        return self._local(entry)

    def _local(self, entry: CatalogueEntry) -> Loaded:
        path = Path(entry.location)
        try:
            before = path.stat()
            if not stat.S_ISREG(before.st_mode):
                raise LoadError("not_found", "its place in the catalogue is not a file", LoraUnavailableError)
            if before.st_size > self._max_file_bytes:
                reason = f"its file has {mib(before.st_size)}; allowed: at most {mib(self._max_file_bytes)}"
                raise self._remember(entry, LoadError("too_large", reason, InvalidRequestError))
            content = sha256_of(path)
            if entry.sha256 not in (None, content):
                reason = f"its file hashes to {content}; the catalogue says {entry.sha256}"
                raise self._remember(entry, LoadError("hash_mismatch", reason, LoraUnavailableError))
            outside = local_settings(entry)
            content = outside.key(content)
            try:
                return self._publisher.publish(
                    path, content, "disk", outside, lambda: _state(before) == _state(path.stat())
                )
            finally:
                # Else what was hashed need not be what was read now, or what the entry was made of.
                if _state(before) == _state(path.stat()) and entry.is_current:
                    self._learn(entry.identity, content)
        except OSError as error:
            logger.warning("%s: %s", path, error)
            raise LoadError("not_found", "its file cannot be read", LoraUnavailableError) from error

    def _learn(self, identity: str, content: str) -> None:
        with self._mutex:
            self._contents[identity] = content

    def _remember(self, entry: CatalogueEntry, failed: LoadError) -> LoadError:
        self._failures.failed(entry.identity, failed.bare())
        return failed

    def _settle(self, answer: Future[LoadedLora], done: Future[Loaded], name: str, start: float) -> None:
        seconds, error = time.perf_counter() - start, done.exception()
        if isinstance(error, LoadError):
            answer.set_exception(error.for_client(name))
            self._observer.refused(error.kind)
        else:
            loaded = done.result()
            answer.set_result(LoadedLora(loaded.path, loaded.source, seconds * 1000))
            self._observer.loaded(loaded.source, seconds)


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino
