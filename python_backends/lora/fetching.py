"""LoRA files from remote stores, through fsspec: bounded in size, time and patience. Needs no torch."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import fsspec
from cachetools import LRUCache
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.callbacks import Callback
from fsspec.exceptions import FSTimeoutError
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from tenacity.stop import stop_base

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import RetryCallState

logger = logging.getLogger(__name__)

MIB = 2**20
TRANSIENT_STATUSES = frozenset({408, 425, 429})
REMEMBERED = 1024


class FetchError(Exception):
    """A file that could not be fetched; the message is for clients and has no URL, which may hold secrets.

    Attributes:
        kind: The class of the reason, for metrics.
        transient: Whether trying again may help.
    """

    def __init__(self, kind: str, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.kind, self.transient = kind, transient


@dataclass(frozen=True)
class FetchLimits:
    """How much, how long and how often.

    Attributes:
        max_bytes: Largest file.
        timeout_s: For one file, all attempts together.
        read_timeout_s: Longest time to connect, and without any data.
        attempts: Most attempts at one file, where trying again may help.
        first_wait_s: Pause after the first attempt; it doubles with each, and is jittered by as much.
    """

    max_bytes: int
    timeout_s: float = 120.0
    read_timeout_s: float = 15.0
    attempts: int = 4
    first_wait_s: float = 0.25


class Fetcher:
    """Fetches files; may be used by several threads at a time."""

    def __init__(self, limits: FetchLimits, on_failed_attempt: Callable[[str], None] = lambda _kind: None) -> None:
        """Keeps the limits.

        Args:
            limits: How much, how long and how often.
            on_failed_attempt: Called with the kind of each failed attempt.
        """
        self._limits, self._on_failed_attempt = limits, on_failed_attempt

    def fetch(self, location: str, target: Path, sha256: str | None) -> str:
        """Fetches one file; on failure nothing of use is in `target`, which is the caller's to remove.

        Args:
            location: An fsspec URL.
            target: File to write.
            sha256: What it must hash to; None takes it as it is.

        Returns:
            The SHA-256 of the file.

        Raises:
            FetchError: If it could not be had.
        """
        deadline = time.monotonic() + self._limits.timeout_s
        first = self._limits.first_wait_s
        retrying = Retrying(
            stop=stop_after_attempt(self._limits.attempts) | _StopBefore(deadline),
            wait=wait_exponential_jitter(initial=first, max=32 * first, jitter=first),
            retry=retry_if_exception(lambda error: isinstance(error, FetchError) and error.transient),
            reraise=True,
        )
        return str(retrying(self._attempt, location, target, sha256, deadline))

    def _attempt(self, location: str, target: Path, sha256: str | None, deadline: float) -> str:
        try:
            meter = _Meter(self._limits.max_bytes, deadline)
            try:
                self._download(location, target, meter, deadline)
            except Exception as error:  # every store has its own exceptions
                raise _explain(error, self._limits) from error
            return _verified(target, meter.announced, sha256)
        except FetchError as error:
            logger.warning("fetching from %s failed: %s", _host(location), error, exc_info=error.kind == "store")
            self._on_failed_attempt(error.kind)
            raise

    def _download(self, location: str, target: Path, meter: _Meter, deadline: float) -> None:
        system, path = fsspec.core.url_to_fs(location, **self._options(location))
        if isinstance(system, AsyncFileSystem):  # its own timeout: whatever the store's client does, the thread is free
            left = max(deadline - time.monotonic(), 0.01)
            sync(system.loop, system._get_file, path, str(target), callback=meter, timeout=left)
        else:
            system.get_file(path, str(target), callback=meter)

    def _options(self, location: str) -> dict[str, Any]:
        if not location.startswith(("http://", "https://")):
            return {}
        wait = self._limits.read_timeout_s
        timeout = aiohttp.ClientTimeout(total=None, connect=wait, sock_connect=wait, sock_read=wait)
        # The file's bytes as they are, for its announced length and its hash; proxies and .netrc as curl takes them.
        client = {"timeout": timeout, "auto_decompress": False, "trust_env": True}
        is_url = location.isascii() and " " not in location  # left as it is then: signatures hold for one spelling
        return {"client_kwargs": client, "headers": {"Accept-Encoding": "identity"}, "encoded": is_url}


class FailureMemory:
    """Which entries failed lately: those fail at once, for a time that doubles with each failure in a row."""

    def __init__(self, first_s: float = 2.0, most_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        """An empty memory.

        Args:
            first_s: How long the first failure counts.
            most_s: How long any failure counts at most.
            clock: Seconds that pass.
        """
        self._first_s, self._most_s, self._clock = first_s, most_s, clock
        self._failures: LRUCache[str, tuple[Exception, float, float]] = LRUCache(REMEMBERED)
        self._mutex = threading.Lock()

    def current(self, identity: str) -> Exception | None:
        """The failure that still counts, if there is one."""
        with self._mutex:
            failure = self._failures.get(identity)
        return failure[0] if failure is not None and self._clock() < failure[1] else None

    def failed(self, identity: str, error: Exception) -> None:
        """Notes a failure."""
        with self._mutex:
            previous = self._failures.get(identity)
            lasts = self._first_s if previous is None else min(2 * previous[2], self._most_s)
            self._failures[identity] = (error, self._clock() + lasts, lasts)

    def succeeded(self, identity: str) -> None:
        """Forgets the failures of an entry."""
        with self._mutex:
            self._failures.pop(identity, None)


class _StopBefore(stop_base):
    """No further attempt if it could only start after a time of `time.monotonic`."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def __call__(self, retry_state: RetryCallState) -> bool:
        return time.monotonic() + retry_state.upcoming_sleep >= self._deadline


class _Meter(Callback):
    """Watches a download's size and time; raising from here ends it."""

    def __init__(self, max_bytes: int, deadline: float) -> None:
        super().__init__()
        self.announced: int | None = None
        self._max_bytes, self._deadline, self._received = max_bytes, deadline, 0

    def set_size(self, size: int | None) -> None:
        self.announced = size
        if size is not None and size > self._max_bytes:
            raise FetchError("too_large", f"its file has {_mib(size)}; allowed: at most {_mib(self._max_bytes)}")

    def relative_update(self, inc: int = 1) -> None:
        self.absolute_update(self._received + inc)

    def absolute_update(self, value: int) -> None:
        self._received = value
        if value > self._max_bytes:
            raise FetchError("too_large", f"its file has more than {_mib(self._max_bytes)}, which is the limit")
        if time.monotonic() > self._deadline:
            raise TimeoutError


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verified(target: Path, announced: int | None, sha256: str | None) -> str:
    received = target.stat().st_size
    if announced is not None and received != announced:
        message = f"its store sent {received} bytes of the {announced} that it announced"
        raise FetchError("truncated", message, transient=True)
    actual = sha256_of(target)
    if sha256 is not None and actual != sha256:
        raise FetchError("hash_mismatch", f"its file hashes to {actual}; the catalogue says {sha256}")
    return actual


def _explain(error: Exception, limits: FetchLimits) -> FetchError:
    """What a store's exception comes to."""
    if isinstance(error, FetchError):
        return error
    if isinstance(error, FSTimeoutError) and not isinstance(error.__cause__, aiohttp.ServerTimeoutError):
        return FetchError("timeout", f"its store did not send the file within {limits.timeout_s:g} s", transient=True)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return FetchError("timeout", f"its store sent nothing for {limits.read_timeout_s:g} s", transient=True)
    if isinstance(error, aiohttp.ClientResponseError):
        again = error.status >= 500 or error.status in TRANSIENT_STATUSES
        return FetchError("status", f"its store answers {error.status} {error.message}".rstrip(), transient=again)
    if isinstance(error, FileNotFoundError):
        return FetchError("not_found", "its store does not have the file")
    if isinstance(error, PermissionError):
        return FetchError("forbidden", "its store does not give the file to this server")
    if isinstance(error, aiohttp.ClientPayloadError):
        return FetchError("truncated", "its store broke off in the middle of the file", transient=True)
    if isinstance(error, aiohttp.ClientSSLError):
        return FetchError("tls", "its store's certificate is not accepted")
    if isinstance(error, aiohttp.ClientConnectionError | ConnectionError):
        return FetchError("connection", "its store cannot be reached", transient=True)
    if isinstance(error, ImportError):
        return FetchError("protocol", f"this server lacks the package for its store: {error}")
    return FetchError("store", f"its store failed with {type(error).__name__}")


def _host(location: str) -> str:
    try:
        parts = urlsplit(location)
    except ValueError:
        return "a location that is no URL"
    return f"{parts.scheme}://{parts.hostname or ''}"


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
