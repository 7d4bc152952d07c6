"""The Triton servers behind a gateway: what they have, and which takes the next picture."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..client.async_client import AsyncClient
from ..client.errors import ModelNotFound, SwiftDiffusionError
from ..client.pipelines import PipelineDescription

logger = logging.getLogger(__name__)

KNOWN_FOR_S = 5.0
"""What a server has is asked for again after so long: operators add LoRAs while it runs."""

ASKED_AT_MOST_EVERY_S = 1.0
"""By callers who name what no server has, or ask whether one is ready."""


class Servers:
    """Any number of servers with any pipelines.

    A pipeline that several have is expected to be the same on each: its pictures go to the one that has the fewest of
    this gateway's to make.
    """

    def __init__(self, urls: tuple[str, ...], ca_file: Path | None = None) -> None:
        """Calls none yet.

        Args:
            urls: `grpc://HOST:PORT` of each.
            ca_file: Who signed their certificates.
        """
        self._urls, self._ca_file = urls, ca_file
        self._clients: dict[tuple[str, str | None], AsyncClient] = {}
        self._running: Counter[str] = Counter()
        self._had: dict[str, dict[str, PipelineDescription]] = {}
        self._asked_at = 0.0
        self._asked_anew: asyncio.Task[None] | None = None
        self._asking = asyncio.Lock()
        self._looking, self._looked_at, self._ready = asyncio.Lock(), -ASKED_AT_MOST_EVERY_S, 0

    async def pipelines(self) -> dict[str, PipelineDescription]:
        """Those of all servers, by name, as they were told a moment ago: who asks waits only where nothing is known.

        Raises:
            SwiftDiffusionError: if none of them answers: what the last said.
        """
        if not self._had:
            async with self._asking:
                if not self._had:
                    await self._ask()
        elif time.monotonic() - self._asked_at > KNOWN_FOR_S and (self._asked_anew is None or self._asked_anew.done()):
            self._asked_anew = asyncio.create_task(self._ask_anew())
        return {name: each for had in self._had.values() for name, each in had.items()}

    async def pipeline(self, name: str) -> PipelineDescription:
        """One of them.

        Raises:
            ModelNotFound: if no server has it.
        """
        known = await self.pipelines()
        if name not in known and time.monotonic() - self._asked_at > ASKED_AT_MOST_EVERY_S:
            await self._ask_anew()
            known = await self.pipelines()
        if name not in known:
            raise ModelNotFound(f"no pipeline is called {name[:128]!r}; allowed: {', '.join(known)}")
        return known[name]

    def by_load(self, pipeline: str) -> list[str]:
        """URLs of those that have a pipeline, the least busy first."""
        having = [url for url in self._urls if pipeline in self._had.get(url, {})]
        return sorted(having, key=lambda url: self._running[url])

    @contextmanager
    def lent(self, url: str, pipeline: str) -> Iterator[AsyncClient]:
        """The client of a server's pipeline, while it makes one more picture."""
        self._running[url] += 1
        try:
            yield self._client(url, pipeline)
        finally:
            self._running[url] -= 1

    async def ready(self) -> int:
        """How many are, as of a moment ago."""
        async with self._looking:
            if time.monotonic() - self._looked_at > ASKED_AT_MOST_EVERY_S:
                self._ready = sum(await asyncio.gather(*(self._client(url, None).is_ready() for url in self._urls)))
                self._looked_at = time.monotonic()
        return self._ready

    async def close(self) -> None:
        """Closes the connections."""
        if self._asked_anew is not None:
            self._asked_anew.cancel()
            await asyncio.gather(self._asked_anew, return_exceptions=True)
        for client in self._clients.values():
            await client.close()

    async def _ask_anew(self) -> None:
        async with self._asking:
            try:
                await self._ask()
            except SwiftDiffusionError:  # which `_ask` has logged; what was known stays
                self._asked_at = time.monotonic()

    async def _ask(self) -> None:
        answers = await asyncio.gather(
            *(self._client(url, None).pipelines() for url in self._urls), return_exceptions=True
        )
        had: dict[str, dict[str, PipelineDescription]] = {}
        failure: SwiftDiffusionError | None = None
        for url, answer in zip(self._urls, answers, strict=True):
            if isinstance(answer, SwiftDiffusionError):
                logger.warning("%s does not say what it has: %s", url, answer)
                failure = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                had[url] = answer
        if not had and failure is not None:
            raise failure
        self._had, self._asked_at = had, time.monotonic()

    def _client(self, url: str, pipeline: str | None) -> AsyncClient:
        key = url, pipeline
        if key not in self._clients:
            self._clients[key] = AsyncClient(url, pipeline, ca_file=self._ca_file)
        return self._clients[key]
