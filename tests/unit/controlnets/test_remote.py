"""ControlNets on other servers: what is said of one that cannot be reached, or does not answer in time."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from swiftdiffusion.python_backends.common.errors import ControlNetUnavailableError
from swiftdiffusion.python_backends.controlnets.remote import RemoteControlNet
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
