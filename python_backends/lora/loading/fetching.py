"""LoRA files from remote stores, through fsspec: bounded in size, time and patience. Needs no torch."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import aiohttp
import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.callbacks import Callback
from fsspec.utils import get_protocol
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from tenacity.stop import stop_base

from ...common.filesystem import sha256_of
from ...common.sentences import mib
from .fetch_errors import FetchError, explain, host, late, places
from .fetch_limits import FetchLimits
from .patience import AbandonableFetches

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import RetryCallState

logger = logging.getLogger(__name__)

CHUNK_BYTES = 2**20


class Fetcher:
    """Fetches files; may be used by several threads at a time."""

    def __init__(
        self,
        limits: FetchLimits,
        on_failed_attempt: Callable[[str], None] = lambda _kind: None,
        most_hanging: int = 32,
    ) -> None:
        """Keeps the limits.

        Args:
            limits: How much, how long and how often.
            on_failed_attempt: Called with the kind of each failed attempt.
            most_hanging: Fetches that may hang, given up, in stores whose clients know no timeouts (`patience`).
        """
        self._limits, self._on_failed_attempt = limits, on_failed_attempt
        self._abandonable = AbandonableFetches(most_hanging)

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
            meter = _Meter(self._limits, deadline)
            try:
                self._download(location, target, meter, deadline)
            except Exception as error:  # every store has its own exceptions
                raise explain(error, self._limits, target) from error
            return _verified(target, meter.announced, sha256)
        except FetchError as error:
            where = f"\n{places(error.__cause__)}" if error.kind == "store" else ""
            logger.warning("fetching from %s failed: %s%s", host(location), error, where)
            logger.debug("all that the store says, which may have the URL", exc_info=True)
            self._on_failed_attempt(error.kind)
            raise

    def _download(self, location: str, target: Path, meter: _Meter, deadline: float) -> None:
        """By the store's asynchronous client, which can be told to stop, or by any other, which is abandoned."""
        if issubclass(fsspec.get_filesystem_class(get_protocol(location)), AsyncFileSystem):
            system, path = fsspec.core.url_to_fs(location, **self._options(location))
            left = max(deadline - time.monotonic(), 0.01)
            sync(system.loop, system._get_file, path, str(target), callback=meter, timeout=left)
            return
        with target.open("wb") as file:  # closed when the fetch is abandoned: nothing is written later
            self._abandonable.run(location, lambda: _copy(location, file, meter), deadline)

    def _options(self, location: str) -> dict[str, Any]:
        if not location.startswith(("http://", "https://")):
            return {}
        wait = self._limits.read_timeout_s
        timeout = aiohttp.ClientTimeout(total=None, connect=wait, sock_connect=wait, sock_read=wait)
        # The file's bytes as they are, for its announced length and its hash; proxies and .netrc as curl takes them.
        client = {"timeout": timeout, "auto_decompress": False, "trust_env": True}
        is_url = location.isascii() and " " not in location  # left as it is then: signatures hold for one spelling
        return {"client_kwargs": client, "headers": {"Accept-Encoding": "identity"}, "encoded": is_url}


class _StopBefore(stop_base):
    """No further attempt if it could only start after a time of `time.monotonic`."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def __call__(self, retry_state: RetryCallState) -> bool:
        return time.monotonic() + retry_state.upcoming_sleep >= self._deadline


class _Meter(Callback):
    """Watches a download's size and time; raising from here ends it."""

    def __init__(self, limits: FetchLimits, deadline: float) -> None:
        super().__init__()
        self.announced: int | None = None
        self._limits, self._deadline, self._received = limits, deadline, 0

    def set_size(self, size: int | None) -> None:
        self.announced, most = size, self._limits.max_bytes
        if size is not None and size > most:
            raise FetchError("too_large", f"its file has {mib(size)}; allowed: at most {mib(most)}")

    def relative_update(self, inc: int = 1) -> None:
        self.absolute_update(self._received + inc)

    def absolute_update(self, value: int) -> None:
        self._received, most = value, self._limits.max_bytes
        if value > most:
            raise FetchError("too_large", f"its file has more than {mib(most)}, which is the limit")
        if time.monotonic() > self._deadline:
            raise late(self._limits)


def _copy(location: str, target: BinaryIO, meter: _Meter) -> None:
    """Fetches a file with a client of its own, which may hang whenever it is called."""
    system, path = fsspec.core.url_to_fs(location, skip_instance_cache=True)
    with system.open(path, "rb") as source:
        meter.set_size(getattr(source, "size", None))
        while data := source.read(CHUNK_BYTES):
            meter.relative_update(len(data))
            target.write(data)


def _verified(target: Path, announced: int | None, sha256: str | None) -> str:
    received = target.stat().st_size
    if announced is not None and received != announced:
        message = f"its store sent {received} bytes of the {announced} that it announced"
        raise FetchError("truncated", message, transient=True)
    actual = sha256_of(target)
    if sha256 is not None and actual != sha256:
        raise FetchError("hash_mismatch", f"its file hashes to {actual}; the catalogue says {sha256}")
    return actual
