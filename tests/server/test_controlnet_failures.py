"""A ControlNet that dies is reloaded; one that stays down ends only the requests that use it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from tritonclient.utils import InferenceServerException

from controls import Use, request
from demo_requests import wait_until_running
from supervised import SUPERVISED
from wire import stub_of

if TYPE_CHECKING:
    from conftest import TinyServer

pytestmark = [pytest.mark.kills, pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)]


@pytest.mark.parametrize("name", ["edges", "canny"], ids=["here", "elsewhere"])
def test_a_killed_controlnet_is_reloaded(tiny: TinyServer, name: str) -> None:
    owner = tiny.running if name == "edges" else tiny.elsewhere
    expected = request(tiny, Use(name), STEPS=150)
    with ThreadPoolExecutor(1) as threads:
        victim = threads.submit(request, tiny, Use(name), STEPS=150)
        wait_until_running(owner.grpc_url, f"controlnet_{name}")
        os.kill(stub_of(owner, f"controlnet_{name}"), signal.SIGKILL)
        assert victim.result().distance(expected) <= 1.0


def test_one_that_stays_down_ends_its_requests_only(tiny: TinyServer) -> None:
    fields: dict[str, Any] = {"STEPS": 150, "SEED": 3}
    others = [request(tiny, **fields), request(tiny, Use("edges"), **fields)]
    weights = tiny.directory / "pose"
    weights.rename(weights.with_name("elsewhere"))
    try:
        with ThreadPoolExecutor(3) as threads:
            running = [
                threads.submit(request, tiny, **fields),
                threads.submit(request, tiny, Use("edges"), **fields),
                threads.submit(request, tiny, Use("pose"), **fields | {"STEPS": 200, "HEIGHT": 128, "WIDTH": 128}),
            ]
            wait_until_running(tiny.grpc_url, "controlnet_pose")
            os.kill(stub_of(tiny.running, "controlnet_pose"), signal.SIGKILL)
            with pytest.raises(
                InferenceServerException, match=r'CONTROLNETS names "pose": controlnet_pose is down .* retry'
            ):
                running[2].result()
            for expected, one in zip(others, running[:2], strict=True):
                assert one.result().distance(expected) <= 1.0
    finally:
        weights.with_name("elsewhere").rename(weights)
    SUPERVISED.wait_whole()
    assert request(tiny, Use("pose"), STEPS=4).info["controlnets"][0]["calls"] == 8
