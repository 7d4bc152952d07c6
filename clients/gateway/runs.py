"""Pictures on their way: each a task that ends when its caller does."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..client.errors import LoraUnavailable, RequestTimeout, ServerUnavailable, SwiftDiffusionError
from ..client.request import GenerationRequest
from ..client.result import GenerationResult, Progress
from ..client.retries import RETRIABLE, Retries
from .errors import ApiError, api_error, frames_of, unavailable
from .metrics import Metrics
from .servers import Servers

logger = logging.getLogger(__name__)

GRACE_S = 5.0
"""The server itself ends a request at its TIMEOUT_MS; the gateway so much later, should it not."""

MOST_UNREAD = 8
"""A caller who reads no faster than that misses steps, not the picture."""

Event = Progress | GenerationResult | ApiError
Receive = Callable[[], Awaitable[Any]]


@dataclass(eq=False)
class Run:
    """One picture.

    Attributes:
        pipeline: that makes it.
        request: with its id and its seed.
        caller: whose it is.
        events: what happens, ending with the picture or an error.
        progress: the last.
        preview: the last, a file.
        end: once it has ended.
    """

    pipeline: str
    request: GenerationRequest
    caller: str
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    progress: Progress | None = None
    preview: bytes | None = None
    end: GenerationResult | ApiError | None = None
    task: "asyncio.Task[None] | None" = None

    async def result(self) -> GenerationResult:
        """The picture.

        Raises:
            ApiError: if there is none.
        """
        if self.task is not None:
            await asyncio.wait([self.task])
        if isinstance(self.end, GenerationResult):
            return self.end
        raise self.end or _cancelled()

    def cancel(self) -> None:
        """Ends it, here and on its server, unless it has ended or is about to: that takes a call to the server."""
        if self.task is not None and not self.task.cancelling():
            self.task.cancel()


class Runs:
    """All that are on their way."""

    def __init__(self, servers: Servers, metrics: Metrics, *, retries: int, most: int, seconds: float) -> None:
        """None yet.

        Args:
            servers: Where they are made.
            metrics: Of the gateway.
            retries: As the client's.
            most: At once.
            seconds: That one may take which has no `timeout_ms`.
        """
        self._servers, self._metrics = servers, metrics
        self._retries, self._most, self._seconds = retries, most, seconds
        self.running: set[Run] = set()

    def begin(self, pipeline: str, requests: Sequence[GenerationRequest], caller: str, *, streamed: bool) -> list[Run]:
        """Begins pictures of one caller.

        Args:
            pipeline: That makes them.
            requests: One for each, as `numbered` makes them.
            caller: Whose they are.
            streamed: Whether there is progress.

        Raises:
            ApiError: If there would be too many.
        """
        if len(self.running) + len(requests) > self._most:
            raise ApiError(
                429,
                f"{len(self.running)} pictures are being made; allowed: {self._most} at once",
                "rate_limit_error",
                code="overloaded",
                retry_after=1,
            )
        runs = [Run(pipeline, request, caller) for request in requests]
        for run in runs:
            run.task = asyncio.create_task(self._live(run, streamed), name=f"picture {run.request.request_id}")
            self.running.add(run)
            self._metrics.runs.labels(pipeline).inc()
            run.task.add_done_callback(partial(self._left, run))
        return runs

    async def close(self) -> None:
        """Ends all, since the gateway does."""
        running = list(self.running)
        for run in running:
            run.end = run.end or unavailable("the gateway stops; try again later")
            run.cancel()
        await asyncio.gather(*(run.task for run in running if run.task), return_exceptions=True)

    async def _live(self, run: Run, streamed: bool) -> None:
        limit = run.request.timeout_ms
        seconds = self._seconds if limit is None else limit / 1000 + GRACE_S
        try:
            async with asyncio.timeout(seconds):
                run.end = await self._anywhere(run, streamed)
        except TimeoutError:
            run.end = api_error(RequestTimeout(f"no picture within {seconds:g} s"))
        except (SwiftDiffusionError, ValueError) as error:
            run.end = api_error(error)
        except Exception as error:  # noqa: BLE001  its caller is told, and the log, whatever it is
            logger.error("picture %s failed:\n%s", run.request.request_id, frames_of(error))
            run.end = api_error(error)

    async def _anywhere(self, run: Run, streamed: bool) -> GenerationResult:
        """On the least busy server; where that dies or is full, on another, after deaths on any again after a while."""
        retries = Retries(self._retries)
        while True:
            failure: ServerUnavailable | None = None
            for url in self._servers.by_load(run.pipeline):
                try:
                    return await self._on(url, run, streamed)
                except LoraUnavailable:
                    raise
                except ServerUnavailable as error:
                    failure = error
            if failure is None:
                await self._servers.pipeline(run.pipeline)  # raises, unless it has come back meanwhile
            elif isinstance(failure, RETRIABLE):
                await retries.pause(failure)
            else:
                raise failure

    async def _on(self, url: str, run: Run, streamed: bool) -> GenerationResult:
        with self._servers.lent(url, run.pipeline) as client:
            if not streamed:
                return await client.generate(run.request)
            async with aclosing(client.stream(run.request)) as events:
                async for event in events:
                    if isinstance(event, GenerationResult):
                        return event
                    self._note(run, event)
        raise SwiftDiffusionError("the stream ended without a picture")

    @staticmethod
    def _note(run: Run, progress: Progress) -> None:
        if run.progress is not None and progress.step <= run.progress.step:
            return  # begun again elsewhere, the caller has seen that
        run.progress, run.preview = progress, progress.preview or run.preview
        if run.events.qsize() < MOST_UNREAD:
            run.events.put_nowait(progress)

    def _left(self, run: Run, _task: "asyncio.Task[None]") -> None:
        """Not at the end of the task itself: one that is cancelled before it has begun does not get there."""
        self.running.discard(run)
        self._metrics.runs.labels(run.pipeline).dec()
        self._metrics.pictures.labels(run.pipeline, _outcome(run)).inc()
        run.events.put_nowait(run.end or _cancelled())


@asynccontextmanager
async def while_asked_for(runs: Sequence[Run], receive: Receive) -> AsyncIterator[None]:
    """Ends runs when their caller goes, and when the block ends.

    Args:
        runs: Of one request.
        receive: Of its connection; the body has been read.
    """
    watching = asyncio.create_task(_watch(runs, receive))
    try:
        yield
    finally:
        watching.cancel()
        for run in runs:
            run.cancel()
        await asyncio.gather(watching, *(run.task for run in runs if run.task), return_exceptions=True)


async def _watch(runs: Sequence[Run], receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    for run in runs:
        run.cancel()


def numbered(request: GenerationRequest, count: int) -> list[GenerationRequest]:
    """So many pictures of one request, with seeds that count up, each with an id of its own."""
    first, batch = request.with_seed(), secrets.token_hex(4)  # callers may use their ids twice
    return [
        replace(first, seed=(first.seed or 0) + index, request_id=f"{first.request_id}-{batch}-{index}")
        for index in range(count)
    ]


def _cancelled() -> ApiError:
    return ApiError(499, "the picture was cancelled", "cancelled", code="cancelled")


def _outcome(run: Run) -> str:
    if isinstance(run.end, GenerationResult):
        return "picture"
    return "cancelled" if run.end is None else run.end.code or "invalid"
