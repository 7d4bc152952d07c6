"""Server-sent events of a run."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ..client.result import GenerationResult, Progress
from .errors import ApiError
from .runs import Run, while_asked_for

Happening = Progress | GenerationResult | ApiError | None
EVENTS = "text/event-stream"
SILENT_S = 15.0
"""A comment is sent after so long without an event: proxies close connections that are silent."""


class EventStream(StreamingResponse):
    """An answer of events: while it is being sent, whether its caller is there is watched.

    (Starlette's own notices that when it has something to send.) A run that fails before anything has happened is
    answered with its error, in place of a stream: clients and balancers look at the status.
    """

    def __init__(self, run: Run, told: Callable[[Happening], Iterable[bytes]], path: str) -> None:
        """An answer of what happens to a run.

        Args:
            run: Ends with it.
            told: Happening → the events that tell of it.
            path: Of the route, which says what an error looks like.
        """
        super().__init__(iter(()), headers={"cache-control": "no-cache", "x-accel-buffering": "no"}, media_type=EVENTS)
        self._run, self._told, self._path = run, told, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        async with while_asked_for([self._run], receive), aclosing(happenings(self._run)) as happened:
            first = await anext(happened)
            if isinstance(first, ApiError):
                await first.response(self._path)(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send(first, send)
            async for each in happened:
                await self._send(each, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, happened: Happening, send: Send) -> None:
        for event in self._told(happened):
            await send({"type": "http.response.body", "body": event, "more_body": True})


async def happenings(run: Run) -> AsyncGenerator[Happening, None]:
    """What happens to a run, up to its end; None where for long nothing does."""
    event: Any = None
    while not isinstance(event, GenerationResult | ApiError):
        try:
            async with asyncio.timeout(SILENT_S):
                event = await run.events.get()
        except TimeoutError:
            event = None
        yield event
