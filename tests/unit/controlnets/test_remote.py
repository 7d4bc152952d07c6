"""ControlNets on other servers: what is said of one that cannot be reached, or does not answer in time."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import torch
from tritonclient.grpc import service_pb2, service_pb2_grpc

from swiftdiffusion.python_backends.common.errors import ControlNetUnavailableError
from swiftdiffusion.python_backends.controlnets.remote import RemoteControlNet
from swiftdiffusion.python_backends.controlnets.remote_model import RemoteModel
from swiftdiffusion.python_backends.request.completed import ControlNetUse

USE = ControlNetUse("canny", ("a" * 64,), 1.0, 0.0, 1.0, False)
TENSORS = {"LATENTS": torch.zeros(1, 4, 8, 8), "TIMESTEPS": torch.zeros(1, 1)}


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


def remote(port: int, timeout_s: float) -> RemoteControlNet:
    return RemoteControlNet("canny", f"grpc://127.0.0.1:{port}", timeout_s, lambda _: np.zeros((8, 8, 3), np.uint8))


def test_one_that_does_not_answer_is_late_and_asked_no_more(listener: socket.socket) -> None:
    canny, started = remote(listener.getsockname()[1], 1.0), time.monotonic()
    for _ in range(20):
        with pytest.raises(
            ControlNetUnavailableError, match=r'"canny" on 127\.0\.0\.1:\d+, which does not answer in time'
        ):
            canny.submit(TENSORS, [USE]).result(30)
    assert time.monotonic() - started < 10


def test_one_that_is_not_there(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(ControlNetUnavailableError, match=r'CONTROLNETS names "canny" on 127\.0\.0\.1:'):
        remote(port, 5.0).submit(TENSORS, [USE]).result(30)


class Ready(service_pb2_grpc.GRPCInferenceServiceServicer):
    """All there is of a server."""

    def ModelReady(self, request: object, context: object) -> service_pb2.ModelReadyResponse:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=True)


def test_one_that_was_away_for_long_is_found_at_once(listener: socket.socket) -> None:
    asyncio.run(_away_for_long(listener))


async def _away_for_long(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    model = RemoteModel(f"127.0.0.1:{port}", "controlnet_canny", 5.0)
    started = time.monotonic()
    while time.monotonic() - started < 6.0:  # gRPC's own pauses between connections are longer by then
        assert not await model.is_ready()
        await asyncio.sleep(0.1)
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Ready(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        await asyncio.sleep(2.0)
        assert await model.is_ready()
    finally:
        server.stop(None)
