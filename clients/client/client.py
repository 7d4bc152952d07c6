"""The blocking client: the asyncio one on an event loop in the background, so there is one implementation."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from .async_client import DEFAULT_URL, AsyncClient
from .health import Health
from .pipelines import PipelineDescription
from .request import GenerationRequest
from .result import GenerationResult, Progress

T = TypeVar("T")

_INTERRUPTED_SECONDS = 6.0  # longer than the client's own limit for cancelling on the server


class Client:
    """Pictures from a SwiftDiffusion server; a context manager.

    Threads may share a client, and it works where an event loop runs already (notebooks). Ctrl-C while it waits for a
    picture cancels the request on the server too.

    Args:
        url: `grpc://HOST:8001` or `http://HOST:8000`; `grpcs` and `https` for TLS.
        model: the entry model; None takes whichever of `sdxl` and `sd15` the server has.
        timeout: seconds that a picture may take; None waits as long as the server works on it.
        retries: as `AsyncClient`'s.
        ca_file: PEM of who signed the server's certificate; None trusts whom the system trusts.
        admin_key: opens what `serve --restrict` closes, of which the clients use the models' states alone (`health`).
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        model: str | None = None,
        timeout: float | None = None,
        retries: int = 0,
        *,
        ca_file: str | Path | None = None,
        admin_key: str | None = None,
    ) -> None:
        self._client = AsyncClient(url, model, timeout, retries, ca_file=ca_file, admin_key=admin_key)

    @property
    def url(self) -> str:
        """The server's URL."""
        return self._client.url

    def generate(self, request: GenerationRequest) -> GenerationResult:
        """See `AsyncClient.generate`."""
        return _wait(self._client.generate(request))

    def stream(self, request: GenerationRequest) -> Iterator[Progress | GenerationResult]:
        """See `AsyncClient.stream`; leaving the iteration early cancels the request."""
        events = self._client.stream(request)
        try:
            while (event := _wait(_next(events))) is not None:
                yield event
        finally:
            _wait(_close(events))

    def cancel(self, request_id: str) -> bool:
        """See `AsyncClient.cancel`."""
        return _wait(self._client.cancel(request_id))

    def pipelines(self) -> dict[str, PipelineDescription]:
        """See `AsyncClient.pipelines`."""
        return _wait(self._client.pipelines())

    def model(self) -> str:
        """See `AsyncClient.model`."""
        return _wait(self._client.model())

    def can_stream(self) -> bool:
        """See `AsyncClient.can_stream`."""
        return _wait(self._client.can_stream())

    def is_ready(self) -> bool:
        """See `AsyncClient.is_ready`."""
        return _wait(self._client.is_ready())

    def health(self) -> Health:
        """See `AsyncClient.health`."""
        return _wait(self._client.health())

    def version(self) -> str:
        """See `AsyncClient.version`."""
        return _wait(self._client.version())

    def wait_until_ready(self, timeout: float = 300.0) -> None:
        """See `AsyncClient.wait_until_ready`."""
        _wait(self._client.wait_until_ready(timeout))

    def close(self) -> None:
        """Closes the connections."""
        _wait(self._client.close())

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _BackgroundLoop:
    """One loop for all clients of the process: gRPC's asyncio API polls for one loop only without noise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def get(self) -> asyncio.AbstractEventLoop:
        """The loop, started by the first call."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="swiftdiffusion-client", daemon=True).start()
            return self._loop

    def forget(self) -> None:
        """Drops the loop, and the lock that another thread may have held: a fork carries no threads along."""
        self._lock, self._loop = threading.Lock(), None


_background = _BackgroundLoop()
if hasattr(os, "register_at_fork"):  # where there is fork
    os.register_at_fork(after_in_child=_background.forget)


def _wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Result of a coroutine that runs on the background loop; an interruption cancels it and lets it clean up."""
    ended = threading.Event()

    async def tracked() -> T:
        try:
            return await coroutine
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(tracked(), _background.get())
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        ended.wait(_INTERRUPTED_SECONDS)
        raise


async def _close(events: AsyncGenerator[Progress | GenerationResult, None]) -> None:
    await events.aclose()


async def _next(events: AsyncIterator[Progress | GenerationResult]) -> Progress | GenerationResult | None:
    return await anext(events, None)
