"""The gateway's end: what is being made has some time, then its callers are told."""

import asyncio
import socket

import uvicorn

from .shared import Shared

LAST_WORDS_S = 10
"""For answers that say that there will be no picture."""


class GatewayServer(uvicorn.Server):
    """uvicorn's, which would cut connections off without a word."""

    def __init__(self, config: uvicorn.Config, shared: Shared, drain_seconds: float) -> None:
        """Serves nothing yet.

        Args:
            config: uvicorn's.
            shared: Of the application.
            drain_seconds: That pictures have to end in, once it is told to.
        """
        super().__init__(config)
        self._shared, self._drain_seconds = shared, drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more requests, and returns when the last answer has gone."""
        ending = asyncio.create_task(self._end_runs())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_runs(self) -> None:
        await asyncio.sleep(self._drain_seconds)
        await self._shared.runs.close()
