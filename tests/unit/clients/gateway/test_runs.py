"""Pictures on their way, without a server to make them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from swiftdiffusion.clients.cli import app
from swiftdiffusion.clients.client.request import GenerationRequest
from swiftdiffusion.clients.gateway.errors import ApiError
from swiftdiffusion.clients.gateway.metrics import Metrics
from swiftdiffusion.clients.gateway.runs import Run, Runs, numbered, while_asked_for
from swiftdiffusion.clients.gateway.servers import Servers
from swiftdiffusion.clients.gateway.streams import happenings

REQUEST = GenerationRequest("a cat", request_id="mine", seed=7)


def run_with(use: Callable[[Runs, Metrics], Awaitable[None]], most: int = 4) -> str:
    """Metrics after pictures were begun that nobody makes: the one server that is known answers nobody."""

    async def run() -> str:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            servers, metrics = Servers((f"grpc://127.0.0.1:{silent.getsockname()[1]}",)), Metrics()
            runs = Runs(servers, metrics, retries=0, most=most, seconds=60)
            await use(runs, metrics)
            await runs.close()
            await servers.close()
            assert not runs.running
        return metrics.text().decode()

    return asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("begun", [False, True])
def test_a_picture_that_is_cancelled_ends_its_stream_even_before_it_has_begun(begun: bool) -> None:
    async def use(runs: Runs, _metrics: Metrics) -> None:
        (run,) = runs.begin("sdxl", [REQUEST], "alice", streamed=True)
        if begun:
            await asyncio.sleep(0.05)
        run.cancel()
        (end,) = [event async for event in happenings(run)]
        assert isinstance(end, ApiError) and (end.status, end.code) == (499, "cancelled")
        with pytest.raises(ApiError, match="was cancelled"):
            await run.result()

    metrics = run_with(use)
    assert 'pictures_total{outcome="cancelled",pipeline="sdxl"} 1.0' in metrics
    assert 'runs{pipeline="sdxl"} 0.0' in metrics


def test_more_pictures_than_there_may_be_at_once_are_refused_together() -> None:
    async def use(runs: Runs, metrics: Metrics) -> None:
        begun = runs.begin("sdxl", numbered(REQUEST, 3), "alice", streamed=False)
        assert len(runs.running) == 3
        with pytest.raises(ApiError, match="3 pictures are being made; allowed: 4 at once") as caught:
            runs.begin("sdxl", numbered(REQUEST, 2), "bob", streamed=False)
        assert (caught.value.status, caught.value.retry_after) == (429, 1)
        assert 'runs{pipeline="sdxl"} 3.0' in metrics.text().decode()
        begun[0].cancel()
        with pytest.raises(ApiError):
            await begun[0].result()
        assert len(runs.begin("sdxl", numbered(REQUEST, 2), "bob", streamed=False)) == 2

    assert 'runs{pipeline="sdxl"} 0.0' in run_with(use)


def test_pictures_end_when_their_caller_goes() -> None:
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def use(runs: Runs, _metrics: Metrics) -> None:
        begun = runs.begin("sdxl", numbered(REQUEST, 2), "alice", streamed=False)
        async with while_asked_for(begun, receive):
            asyncio.get_running_loop().call_later(0.05, gone.set)
            ends = await asyncio.gather(*(run.result() for run in begun), return_exceptions=True)
        assert [isinstance(end, ApiError) and end.status for end in ends] == [499, 499]

    run_with(use)


def test_a_second_cancel_does_not_disturb_the_first() -> None:
    """Cancelling takes a call to the server, in which the gateway may be told to end."""
    ended: list[str] = []

    async def slow_to_cancel() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            ended.append("told the server")

    async def run() -> None:
        picture = Run("sdxl", REQUEST, "alice")
        picture.task = asyncio.create_task(slow_to_cancel())
        await asyncio.sleep(0)
        for _ in range(3):
            picture.cancel()
            await asyncio.sleep(0.01)
        await asyncio.wait([picture.task])
        assert picture.task.cancelled()

    asyncio.run(run())
    assert ended == ["told the server"]


def test_several_pictures_have_ids_of_their_own_and_seeds_that_count_up() -> None:
    first, second = numbered(REQUEST, 2), numbered(REQUEST, 2)
    assert [request.seed for request in first] == [7, 8]
    assert len({request.request_id for request in (*first, *second)}) == 4
    assert all((request.request_id or "").startswith("mine-") for request in first)


@pytest.mark.parametrize("url", ["localhost:8001", "http://127.0.0.1:8000", "grpc://", "ftp://x:1", ""])
def test_a_server_s_url_that_cannot_be_used_is_refused_at_the_start(url: str) -> None:
    """Over HTTP there are no steps to tell of."""
    result = CliRunner().invoke(app, ["gateway", "--server", url, "--port", "0"])
    assert result.exit_code == 2
    assert f"--server is {url!r}; wanted:" in result.output
