"""Cancelling a task of the asyncio client in the very moment in which an answer comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest

from swiftdiffusion.clients import AsyncClient, GenerationRequest
from swiftdiffusion.clients.client import async_client as async_client_module

PROGRESS = {"IMAGE": None, "INFO": np.array([[b'{"step": 1, "of": 9}']], dtype=object)}


class Transport:
    """A server of which the test says when it answers."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.cancelled = 0

    async def infer(self, model: str, tensors: Any, outputs: Sequence[str] = ()) -> dict[str, Any]:
        if model == "cancel":
            self.cancelled += 1
            return {"CANCELLED": np.array([[True]])}
        return await self.answers.get()

    async def stream(self, model: str, tensors: Any) -> AsyncIterator[dict[str, Any]]:
        while True:
            yield await self.answers.get()

    async def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize("streams", [False, True])
def test_it_is_not_swallowed(monkeypatch: pytest.MonkeyPatch, streams: bool, timeout: float | None, turns: int) -> None:
    """`turns`: of the event loop, between the answer and the cancellation."""

    async def run() -> None:
        transport = Transport()
        monkeypatch.setattr(async_client_module, "open_transport", lambda _url, _access: transport)
        async with AsyncClient(model="sdxl", timeout=timeout) as client:
            request = GenerationRequest("a cat")

            async def use() -> None:
                async for _event in client.stream(request):
                    pass

            task = asyncio.create_task(use() if streams else client.generate(request))
            await asyncio.sleep(0.01)
            transport.answers.put_nowait(PROGRESS)
            for _ in range(turns if streams else 0):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 5)
            assert transport.cancelled == 1

    asyncio.run(run())
