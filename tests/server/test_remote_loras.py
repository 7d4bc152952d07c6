"""LoRAs that are still on their way while a request runs, from a store that may be slow or broken."""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tritonclient.utils import InferenceServerException

import lora_files
from file_server import FileServer, file_server, wait_for
from swiftdiffusion.clients import Client, GenerationRequest, GenerationResult, Lora, Progress
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from wire import PROMPT, generate_with, stub_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import TinyServer


@pytest.fixture
def remote(tiny: TinyServer) -> Iterator[FileServer]:
    """A store over HTTP with `attention` as `far`, `farther` …, of which the server learns while it runs."""
    with file_server() as files:
        yield files
    (tiny.loras / "catalogue.json").unlink(missing_ok=True)


def publish(tiny: TinyServer, files: FileServer, name: str, **how: Any) -> str:
    """A new name at the store; its own content, so that no cache knows it."""
    made = lora_files.kohya(
        {"unet": dict(list(BaseModules.of(Checkpoint(tiny.checkpoint)).shapes["unet"].items())[:40])},
        seed=secrets.randbelow(2**31),
    )
    content = made.save(tiny.loras.parent / f"{name}.made").read_bytes()
    location = files.add(f"/{name}.safetensors", content, **how)
    (tiny.loras / "catalogue.json").write_text(json.dumps({"loras": {name: {"location": location}}}))
    return name


def test_a_slow_store_costs_a_request_no_more_than_its_bound(tiny: TinyServer, remote: FileServer) -> None:
    name = publish(tiny, remote, "far", delay_s=4.0)
    waiting = generate_with(tiny, [(name, 1.0)], LORA_BOUND=2, STEPS=8).info["loras"][0]
    assert (waiting["patched_at_step"], waiting["source"]) == (2, "remote")
    assert waiting["load_ms"] > 1000 and waiting["waited_ms"] > 500
    again = generate_with(tiny, [(name, 1.0)], LORA_BOUND=2, STEPS=8).info["loras"][0]
    assert (again["patched_at_step"], again["waited_ms"]) == (0, 0.0)
    assert remote.gets[f"/{name}.safetensors"] == 1


def test_steps_go_on_while_a_lora_loads_and_the_run_can_be_replayed(tiny: TinyServer, remote: FileServer) -> None:
    gate = threading.Event()
    name = publish(tiny, remote, "farther", gate=gate)
    size = {"height": 128, "width": 128}
    one_row = {"guidance_scale": 1.0}  # of two, the last bits depend on whether they are evaluated together
    asked = GenerationRequest(PROMPT, loras=(Lora(name, 1.0),), lora_bound=199, steps=200, seed=7, **size, **one_row)
    with Client(tiny.grpc_url, model=tiny.model, timeout=60) as client:
        events = client.stream(asked)
        assert isinstance(next(events), Progress)
        gate.set()
        *_, result = events
        assert isinstance(result, GenerationResult)
        step = result.info.loras[0].patched_at_step
        assert 0 < step < 199
        replayed = client.generate(replace(asked, lora_bound=None, lora_patch_step=step))
    assert (result.pixels == replayed.pixels).all()


def test_a_stream_waits_and_goes_on(tiny: TinyServer, remote: FileServer) -> None:
    gate = threading.Event()
    name = publish(tiny, remote, "streamed", gate=gate)
    asked = GenerationRequest(PROMPT, loras=(Lora(name, 1.0),), lora_bound=1, steps=4, seed=7)
    with Client(tiny.grpc_url, model=tiny.model, timeout=60) as client:
        events = client.stream(asked)
        progress = [next(events)]
        gate.set()
        *rest, result = events
    assert isinstance(result, GenerationResult)
    steps = result.info.unet_evaluations
    assert [event.step for event in (*progress, *rest) if isinstance(event, Progress)] == list(range(1, steps))
    assert (result.info.loras[0].patched_at_step, result.info.loras[0].source) == (1, "remote")


def test_only_the_request_that_waits_waits(tiny: TinyServer, remote: FileServer) -> None:
    gate = threading.Event()
    name = publish(tiny, remote, "slow", gate=gate)
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(generate_with, tiny, [(name, 1.0)])
        others = [generate_with(tiny, loras) for loras in ([], [("attention", 1.0)]) for _ in range(3)]
        assert not waiting.done()
        assert all(other.info["largest_batch"] == 1 for other in others)
        gate.set()
        assert waiting.result().info["loras"][0]["patched_at_step"] == 0


def test_a_timeout_ends_a_request_that_waits(tiny: TinyServer, remote: FileServer) -> None:
    gate = threading.Event()
    name = publish(tiny, remote, "late", gate=gate)
    with pytest.raises(InferenceServerException, match="TIMEOUT_MS passed after step 0 of"):
        generate_with(tiny, [(name, 1.0)], TIMEOUT_MS=10_000)
    gate.set()
    assert generate_with(tiny, [(name, 1.0)]).info["loras"][0]["patched_at_step"] == 0


def test_requests_that_wait_take_no_place_from_others(tiny: TinyServer, remote: FileServer) -> None:
    gate = threading.Event()
    name = publish(tiny, remote, "stuck", gate=gate)
    with ThreadPoolExecutor(10) as threads:  # two more than the running batch has places
        waiting = [threads.submit(generate_with, tiny, [(name, 1.0)], SEED=seed) for seed in range(10)]
        time.sleep(0.5)
        assert generate_with(tiny, [("attention", 1.0)]).info["largest_batch"] == 1
        assert not any(one.done() for one in waiting)
        gate.set()
        assert {one.result().info["loras"][0]["patched_at_step"] for one in waiting} == {0}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"failures": [404] * 9}, "does not have the file"),
        ({"cut_after": 500}, "far_"),
        ({"failures": [500] * 99}, "500"),
    ],
    ids=["missing", "cut off", "broken"],
)
def test_a_store_that_fails_ends_its_request_only(
    tiny: TinyServer, remote: FileServer, how: dict[str, Any], said: str
) -> None:
    name = publish(tiny, remote, f"far_{secrets.token_hex(4)}", **how)
    with pytest.raises(InferenceServerException, match=said) as caught:
        generate_with(tiny, [(name, 1.0)], LORA_BOUND=2)
    assert f'LORAS names "{name}"' in str(caught.value)
    assert generate_with(tiny, [("attention", 1.0)]).info["loras"][0]["patched_at_step"] == 0


@pytest.mark.kills
def test_a_loader_that_dies_costs_its_requests_only_time(tiny: TinyServer, remote: FileServer) -> None:
    gate = threading.Event()
    name = publish(tiny, remote, "interrupted", gate=gate)
    with ThreadPoolExecutor(2) as threads:
        loading = threads.submit(generate_with, tiny, [(name, 1.0)])
        wait_for(lambda: remote.gets.get(f"/{name}.safetensors", 0) == 1)
        os.kill(stub_of(tiny.running, tiny.inner("lora_store")), signal.SIGKILL)
        assert generate_with(tiny, []).info["largest_batch"] == 1
        gate.set()
        assert loading.result(60).info["loras"][0]["source"] == "remote"
    assert generate_with(tiny, [(name, 1.0)]).info["loras"][0]["patched_at_step"] == 0
