"""A UNet shard that dies is reloaded, and the request that met it still gets its picture."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from demo_requests import wait_until_running
from wire import generate, stub_of

pytestmark = [pytest.mark.kills, pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)]


LORAS = '[{"name": "attention"}, {"name": "everything", "scale": 0.5}]'


def test_a_killed_shard_is_reloaded(tiny: Any) -> None:
    fields = {"PROMPT": "a cat", "SEED": 2, "STEPS": 200, "GUIDANCE_SCALE": 5.0, "LORAS": LORAS, "LORA_BOUND": 0}
    expected = generate(tiny, tiny.model, **fields)
    shard = expected.info["shards"][-1]
    with ThreadPoolExecutor(1) as threads:
        victim = threads.submit(generate, tiny, tiny.model, **fields)
        wait_until_running(tiny.grpc_url, shard)
        assert not victim.done()
        os.kill(stub_of(tiny.running, shard), signal.SIGKILL)
        assert victim.result().distance(expected) <= 1.0
    assert generate(tiny, tiny.model, **fields).distance(expected) <= 1.0
