"""Server-sent events of a run."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ..client.result import GenerationResult, Progress
from .errors import ApiError
from .runs import Run, while_asked_for

EVENTS = "text/event-stream"
SILENT_S = 15.0
"""A comment is sent after so long without an event: proxies close connections that are silent."""


class EventStream(StreamingResponse):
    """An answer of events: while it is being sent, whether its caller is there is watched.

    (Starlette's own notices that when it has something to send.)
    """

    def __init__(self, runs: Sequence[Run], events: AsyncIterator[bytes]) -> None:
        """An answer of events.

        Args:
            runs: End with it.
            events: Are sent as they come.
        """
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"}, media_type=EVENTS)
        self._runs, self._events = runs, events

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        async with while_asked_for(self._runs, receive):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in self._events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def happenings(run: Run) -> AsyncIterator[Progress | GenerationResult | ApiError | None]:
    """What happens to a run, up to its end; None where for long nothing does."""
    event: Any = None
    while not isinstance(event, GenerationResult | ApiError):
        try:
            async with asyncio.timeout(SILENT_S):
                event = await run.events.get()
        except TimeoutError:
            event = None
        yield event
