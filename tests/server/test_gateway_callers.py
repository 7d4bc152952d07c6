"""Crowds of callers of whom many go: the others are served, and nothing is left of anybody."""

from __future__ import annotations

import asyncio
import collections
import gc
import json
import random
import time
import tracemalloc
from collections.abc import Iterator

import httpx2
import pytest

from file_server import wait_for
from gateways import GatewayThread, gateway_thread
from swiftdiffusion.clients.gateway.settings import GatewaySettings
from swiftdiffusion.python_backends.launcher import TritonServer
from wire import PROMPT, latest_metrics

CALLERS, ROUNDS = 200, 3
BODY = {"prompt": PROMPT, "size": "64x64", "num_inference_steps": 4, "stream": True, "progress": True}
GROWTH_KIB = 2_000
"""Of the gateway's Python objects from the first round to the last; one picture on its way has about 50 KiB."""


@pytest.fixture(scope="module")
def gateway(server: TritonServer) -> Iterator[GatewayThread]:
    with gateway_thread(GatewaySettings(servers=(server.grpc_url,), retries=0)) as running:
        yield running


async def call(client: httpx2.AsyncClient, leaves_after: float | None) -> str:
    """How one caller's stream ends; it goes after so many seconds, unless it has had its end by then."""
    kinds: list[str] = []
    try:
        async with asyncio.timeout(leaves_after), client.stream("POST", "/v1/images/generations", json=BODY) as answer:
            if answer.status_code != 200:
                assert answer.status_code in (429, 503), await answer.aread()
                assert answer.headers["retry-after"].isdigit()
                return "refused"
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    kinds.append(line.removeprefix("event: "))
                elif line.startswith("data: ") and kinds[-1] == "error":
                    error = json.loads(line.removeprefix("data: "))["error"]
                    assert error["code"] in ("overloaded", "server_unavailable"), error
    except TimeoutError:
        assert leaves_after is not None
        return "left"
    assert set(kinds[:-1]) <= {"image_generation.progress"}
    assert kinds[-1] in ("image_generation.completed", "error"), "a stream without an end"
    return kinds[-1]


async def crowd(gateway: GatewayThread, seed: int) -> collections.Counter[str]:
    """How all callers of a round end."""
    chance = random.Random(seed)
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=120, limits=limits) as client:
        leaving = [chance.uniform(0.0, 3.0) if number % 2 else None for number in range(CALLERS)]
        return collections.Counter(await asyncio.gather(*(call(client, after) for after in leaving)))


def in_line(server: TritonServer) -> float:
    """Requests that the server has."""
    names = ("swiftdiffusion_requests_running", "swiftdiffusion_requests_waiting")
    return sum(value for name, value in latest_metrics(server).items() if name.startswith(names))


def test_a_crowd_of_whom_half_go_leaves_nothing_behind(gateway: GatewayThread, server: TritonServer) -> None:
    asyncio.run(call_alone(gateway))
    idle = len(gateway.tasks())
    memory: list[int] = []
    tracemalloc.start()
    for seed in range(ROUNDS):
        ends = asyncio.run(crowd(gateway, seed))
        assert ends.total() == CALLERS
        assert ends["image_generation.completed"] >= 1
        assert ends["left"] >= 1
        wait_for(lambda: gateway.runs() == 0, 30)
        wait_for(lambda: in_line(server) == 0, 30)
        wait_for(lambda: len(gateway.tasks()) <= idle, 30)
        gc.collect()
        memory.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert memory[-1] - memory[0] < GROWTH_KIB * 1024, memory
    told = gateway.metrics()
    pictures = [value for name, value in told.items() if name.startswith("swiftdiffusion_gateway_pictures_total")]
    assert sum(pictures) >= ROUNDS * CALLERS / 2
    time.sleep(0.5)
    assert asyncio.run(call_alone(gateway)) == "image_generation.completed"


async def call_alone(gateway: GatewayThread) -> str:
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=60) as client:
        return await call(client, None)
