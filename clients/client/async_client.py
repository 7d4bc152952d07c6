"""The asyncio client, over gRPC or HTTP."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from .access import Access
from .errors import (
    ModelNotFound,
    RequestTimeout,
    ServerRestarting,
    ServerUnavailable,
    ServerUnreachable,
    SwiftDiffusionError,
)
from .health import Health, ModelState
from .pipelines import PipelineDescription, parse_pipelines
from .request import GenerationRequest, Tensor, cancel_tensors, pipelines_tensors
from .result import GenerationResult, Progress, parse_progress, parse_result
from .retries import RETRIABLE, Retries
from .transport import Answer, Transport, open_transport

logger = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULT_URL = "grpc://127.0.0.1:8001"
ENTRY_MODELS = ("sdxl", "sd15")
CANCEL_MODEL, PIPELINES_MODEL = "cancel", "pipelines"

_HEALTH_SECONDS = 10.0
_CANCEL_SECONDS = 5.0
_CANCEL_GRACE_SECONDS = 1.0
_POLL_SECONDS = 0.25


class AsyncClient:
    """Pictures from a SwiftDiffusion server, with asyncio; an asynchronous context manager.

    Any number of tasks of one event loop may use a client at the same time. Cancelling a task that waits for a
    picture cancels the request on the server too.

    Args:
        url: `grpc://HOST:8001` or `http://HOST:8000`; `grpcs` and `https` for TLS.
        model: the entry model; None takes whichever of `sdxl` and `sd15` the server has.
        timeout: seconds that a picture may take; None waits as long as the server works on it.
        retries: how often a request is sent again, with the same seed, that met a part of the server which died
            (`ServerRestarting`), or no server at all (`ServerUnreachable`). While a server says, or shows, that it
            cannot begin yet, it is asked every 2 s for up to two minutes, which uses up none of them.
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
        self.url = url
        self.timeout = timeout
        self.retries = retries
        self._model = model
        self._access = Access(ca_file, admin_key)
        self._transport: Transport | None = None

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """One picture.

        Raises:
            SwiftDiffusionError: one of its subclasses, with the server's sentence.
            ValueError: the request cannot be sent, such as control images of different sizes.
        """
        request = self._complete(request)
        tensors = request.tensors()
        start = time.monotonic()
        async with self._cancelled_on_server(request), asyncio.timeout(self.timeout):
            retries = Retries(self.retries)
            while True:
                try:
                    outputs = await self._open().infer(await self.model(), tensors)
                    return parse_result(outputs, request, time.monotonic() - start)
                except RETRIABLE as error:
                    await retries.pause(error)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Progress | GenerationResult, None]:
        """Progress after each step, then the picture. gRPC only.

        Leaving the iteration early cancels the request; use `contextlib.aclosing` to have that happen at once.

        Raises:
            StreamingUnsupported: the URL is HTTP.
            SwiftDiffusionError: as `generate`.
        """
        request = self._complete(request)
        tensors = request.tensors()
        start = time.monotonic()
        deadline = None if self.timeout is None else start + self.timeout
        retries = Retries(self.retries)
        told = 0
        last: Answer | None = None
        async with self._cancelled_on_server(request):
            while last is None:
                try:
                    async with aclosing(self._answers(tensors, deadline)) as answers:
                        async for answer in answers:
                            progress = parse_progress(answer, request)
                            if progress is None:
                                last = answer
                            elif progress.step > told:
                                told = progress.step
                                yield progress
                    last = last or {}
                except RETRIABLE as error:
                    async with asyncio.timeout(_left(deadline)):
                        await retries.pause(error)
        yield parse_result(last, request, time.monotonic() - start)

    async def cancel(self, request_id: str) -> bool:
        """Cancels a request; its caller gets `RequestCancelled`.

        Returns:
            Whether such a request was running.
        """
        async with asyncio.timeout(_CANCEL_SECONDS):
            outputs = await self._open().infer(CANCEL_MODEL, cancel_tensors(request_id), outputs=("CANCELLED",))
        answer = outputs["CANCELLED"]
        return answer is not None and bool(answer.any())

    async def pipelines(self) -> dict[str, PipelineDescription]:
        """What the server has to ask for, by entry model.

        Raises:
            SwiftDiffusionError: as `generate`.
        """
        answer = await self._within_health_time(
            self._open().infer(PIPELINES_MODEL, pipelines_tensors(), outputs=("PIPELINES",))
        )
        return parse_pipelines(answer)

    async def model(self) -> str:
        """Name of the entry model.

        Raises:
            ServerRestarting: the server is not ready, and neither `sdxl` nor `sd15` is.
            ModelNotFound: the server is ready, and has neither.
        """
        if self._model is None:
            is_ready = await self.is_ready()  # first: what gets ready meanwhile is there then
            for name in ENTRY_MODELS:
                if await self._within_health_time(self._open().model_ready(name)):
                    self._model = name
                    break
            else:
                lack = f"the server at {self.url} has none of {' and '.join(ENTRY_MODELS)} ready"
                if is_ready:
                    raise ModelNotFound(f"{lack}; if it has others, name one")
                raise ServerRestarting(f"not begun: {lack} yet (if it has others, name one); retry in a few seconds")
        return self._model

    async def can_stream(self) -> bool:
        """Whether `stream` would work: gRPC, and the server has the entry model's streaming twin."""
        if not self.url.startswith("grpc"):
            return False
        return await self._within_health_time(self._open().model_ready(f"{await self.model()}_stream"))

    async def is_ready(self) -> bool:
        """Whether the server answers and all its models are ready; False, not an error, when nobody answers."""
        try:
            return await self._within_health_time(self._open().server_ready())
        except SwiftDiffusionError as error:  # Triton answers "not ready" with an error status over HTTP
            logger.debug("not ready: %s", error)
            return False

    async def health(self) -> Health:
        """State of the server and of each model.

        Raises:
            ServerUnreachable: nobody answers.
            AdminKeyWanted: it is restricted, and `admin_key` is not its key.
        """
        transport = self._open()
        version, ready, index = await self._within_health_time(
            asyncio.gather(transport.version(), self.is_ready(), transport.models())
        )
        models = (ModelState(m["name"], m.get("state", "UNAVAILABLE"), m.get("reason", "")) for m in index)
        return Health(version, ready, tuple(models))

    async def version(self) -> str:
        """The server's; errors as `health`."""
        return await self._within_health_time(self._open().version())

    async def wait_until_ready(self, timeout: float = 300.0) -> None:
        """Waits until the server and all its models are ready.

        Args:
            timeout: seconds.

        Raises:
            ServerUnavailable: it was not ready in time.
        """
        deadline = time.monotonic() + timeout
        while not await self.is_ready():
            if time.monotonic() > deadline:
                raise ServerUnavailable(f"the server at {self.url} was not ready within {timeout:g} s")
            await asyncio.sleep(_POLL_SECONDS)

    async def close(self) -> None:
        """Closes the connections."""
        if self._transport is not None:
            await self._transport.close()
            self._transport = None

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _complete(self, request: GenerationRequest) -> GenerationRequest:
        """Whatever is sent again is the same request."""
        request = request.with_request_id()
        return request.with_seed() if self.retries else request

    async def _answers(self, tensors: list[Tensor], deadline: float | None) -> AsyncGenerator[Answer, None]:
        """Those of one stream; TimeoutError at the deadline, in seconds of the monotonic clock."""
        async with asyncio.timeout(_left(deadline)):
            model = f"{await self.model()}_stream"
        async with aclosing(self._open().stream(model, tensors)) as answers:
            while True:
                try:
                    async with asyncio.timeout(_left(deadline)):  # wait_for may swallow a task's cancellation
                        answer = await anext(answers)
                except StopAsyncIteration:
                    return
                yield answer

    def _open(self) -> Transport:
        if self._transport is None:
            self._transport = open_transport(self.url, self._access)
        return self._transport

    async def _within_health_time(self, call: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                return await call
        except TimeoutError as error:
            raise ServerUnreachable(f"the server at {self.url} does not answer within {_HEALTH_SECONDS:g} s") from error

    @asynccontextmanager
    async def _cancelled_on_server(self, request: GenerationRequest) -> AsyncIterator[None]:
        """Frees the server of a request that nobody waits for any more: a step in an ensemble does not see that."""
        try:
            yield
        except TimeoutError as error:
            await self._try_to_cancel(request)
            raise RequestTimeout(f"no picture within {self.timeout:g} s") from error
        except (asyncio.CancelledError, GeneratorExit):
            await asyncio.shield(self._try_to_cancel(request))
            raise

    async def _try_to_cancel(self, request: GenerationRequest) -> None:
        """Cancels a request; asks again for a while, because one that has not reached the denoiser is not known yet."""
        deadline = time.monotonic() + _CANCEL_GRACE_SECONDS
        try:
            while not await self.cancel(request.request_id or "") and time.monotonic() < deadline:
                await asyncio.sleep(_POLL_SECONDS / 5)
        except (TimeoutError, SwiftDiffusionError) as error:
            logger.warning("request %s could not be cancelled on the server: %s", request.request_id, error)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()
