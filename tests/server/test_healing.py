"""A model that dies is reloaded, and requests that met it still get their pictures, or are told at once."""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

import lora_files
from demo_requests import wait_until_running
from file_server import file_server, wait_for
from shard_roles import roles
from stages import Stages
from swiftdiffusion.clients import Client, GenerationRequest, GenerationResult, Lora, Progress
from swiftdiffusion.python_backends.common.processes import process_state
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from wire import cancel, generate, latest_metrics, stub_of

if TYPE_CHECKING:
    from conftest import TinyServer

pytestmark = pytest.mark.kills
three_shards = pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
one_shard = pytest.mark.parametrize("tiny", ["other"], indirect=True)

FIELDS: dict[str, Any] = {"PROMPT": "a cat", "SEED": 2, "STEPS": 200, "GUIDANCE_SCALE": 5.0}
REQUEST = GenerationRequest("a cat", seed=2, steps=200, guidance_scale=5.0)
SIZE: dict[str, Any] = {"HEIGHT": 160, "WIDTH": 160}
"""Of requests that are to run for seconds."""
LORAS = '[{"name": "attention"}, {"name": "everything", "scale": 0.5}]'


def kill(tiny: TinyServer, model: str, how: signal.Signals = signal.SIGKILL) -> int:
    """The process that it was."""
    process = stub_of(tiny.running, model)
    os.kill(process, how)
    return process


def steps_taken(tiny: TinyServer) -> float:
    """Of the pipeline's batches, as far as the server knows."""
    return latest_metrics(tiny).get(f'swiftdiffusion_denoiser_batch_size_count{{pipeline="{tiny.model}"}}', 0.0)


@three_shards
def test_a_killed_peer_is_reloaded(tiny: TinyServer) -> None:
    fields = FIELDS | SIZE | {"LORAS": LORAS, "LORA_BOUND": 0}
    expected = generate(tiny, tiny.model, **fields)
    with ThreadPoolExecutor(1) as threads:
        victim = threads.submit(generate, tiny, tiny.model, **fields)
        home, (peer,) = roles(tiny, helpers=1)
        kill(tiny, peer)
        assert not victim.done()
        assert victim.result().distance(expected) <= 1.0
        assert home in victim.result().info["shards"]
    assert generate(tiny, tiny.model, **fields).distance(expected) <= 1.0


@three_shards
def test_a_stream_whose_home_is_killed_goes_on_and_never_back(tiny: TinyServer) -> None:
    with Client(tiny.grpc_url, model=tiny.model, timeout=120) as client:
        request = replace(REQUEST, height=160, width=160)
        expected = client.generate(request)
        events = client.stream(request)
        told = [next(events) for _ in range(60)]
        home, _ = roles(tiny)
        kill(tiny, home)
        *rest, picture = events
    steps = [event.step for event in (*told, *rest) if isinstance(event, Progress)]
    assert steps == list(range(1, 200))
    assert isinstance(picture, GenerationResult)
    assert np.abs(picture.pixels.astype(float) - expected.pixels).mean() <= 1.0
    assert set(picture.info.shards) - {home}


@three_shards
def test_a_run_whose_home_is_stopped_starts_again_elsewhere_with_its_loras(tiny: TinyServer) -> None:
    """It had taken what `lora_store` left for it."""
    attention = lora_files.three(BaseModules.of(Checkpoint(tiny.checkpoint)).shapes)["attention"]
    attention.metadata = {"made": secrets.token_hex(8)}
    content = attention.save(tiny.loras.parent / "taken.made").read_bytes()
    index, home = tiny.loras / "catalogue.json", tiny.inner("unet_shard0")
    alone = {"GUIDANCE_SCALE": 1.0, "HEIGHT": 160, "WIDTH": 160}
    stages, fields = Stages(tiny), FIELDS | alone | {"LORAS": '[{"name": "taken"}]', "LORA_BOUND": 0}
    with file_server() as store, ThreadPoolExecutor(1) as threads:
        location = store.add("/taken.safetensors", content, delay_s=0.5)
        index.write_text(json.dumps({"loras": {"taken": {"location": location}}}))
        try:
            before = steps_taken(tiny)
            victim = threads.submit(stages.denoise, stages.encode(home, **fields))
            wait_for(lambda: steps_taken(tiny) > before + 10)
            kill(tiny, home, signal.SIGSTOP)
            latents, info = victim.result()
            expected, _ = stages.denoise(stages.encode(*info["shards"], **fields))
        finally:
            index.unlink()
    assert np.abs(latents - expected).mean() < 1e-3
    assert len(info["shards"]) == 1 and home not in info["shards"]
    assert (info["loras"][0]["patched_at_step"], info["unet_evaluations"]) == (0, 200)


@one_shard
def test_requests_wait_for_their_only_shard_unless_they_are_to_end(tiny: TinyServer) -> None:
    expected = generate(tiny, tiny.model, **FIELDS)
    with ThreadPoolExecutor(4) as threads:
        waiting = threads.submit(generate, tiny, tiny.model, **FIELDS)
        cancelled = threads.submit(generate, tiny, tiny.model, **FIELDS, **SIZE, REQUEST_ID="ends meanwhile")
        home, _ = roles(tiny)
        kill(tiny, home)
        assert cancel(tiny, "ends meanwhile")
        later = threads.submit(generate, tiny, tiny.model, **FIELDS)
        with pytest.raises(InferenceServerException, match='"ends meanwhile" was cancelled after step') as caught:
            cancelled.result()
        assert "CANCELLED" in str(caught.value.status())
        for one in (waiting, later):
            assert one.result().distance(expected) <= 1.0
            assert one.result().info["shards"] == [home]


@three_shards
def test_a_denoiser_that_dies_ends_its_requests_at_once_and_no_others(tiny: TinyServer) -> None:
    expected = generate(tiny, tiny.model, **FIELDS)
    denoiser = tiny.inner("denoiser")
    with ThreadPoolExecutor(1) as threads, Client(tiny.grpc_url, model=tiny.model, timeout=60) as client:
        stream = client.stream(REQUEST)
        assert isinstance(next(stream), Progress)
        ended = threads.submit(generate, tiny, tiny.model, **FIELDS, HEIGHT=128, WIDTH=128)  # it takes its time
        wait_until_running(tiny.grpc_url, denoiser)
        kill(tiny, denoiser)
        killed_at = time.monotonic()
        with pytest.raises(InferenceServerException, match="not healthy"):
            ended.result()
        assert time.monotonic() - killed_at < 5
        *_, picture = stream
        assert isinstance(picture, GenerationResult)
        assert np.abs(picture.pixels.astype(float) - expected.image).mean() <= 1.0
    with Client(tiny.grpc_url, model=tiny.model, timeout=60, retries=3) as client:
        assert np.abs(client.generate(REQUEST).pixels.astype(float) - expected.image).mean() <= 1.0


@three_shards
@pytest.mark.parametrize(
    ("model", "how"),
    [
        ("preprocess", signal.SIGKILL),
        ("text_encoder", signal.SIGSTOP),
        ("lora_store", signal.SIGSTOP),
        ("denoiser", signal.SIGSTOP),
        ("vae_decoder", signal.SIGKILL),
    ],
)
def test_a_request_that_is_repeated_gets_its_picture_whatever_dies(
    tiny: TinyServer, model: str, how: signal.Signals
) -> None:
    request = replace(REQUEST, loras=(Lora("attention"),), lora_bound=0)
    with Client(tiny.grpc_url, model=tiny.model, timeout=60, retries=3) as client, ThreadPoolExecutor(1) as threads:
        expected = client.generate(request)
        victim = threads.submit(client.generate, request)
        wait_until_running(tiny.grpc_url, tiny.inner("denoiser"))
        kill(tiny, tiny.inner(model), how)
        later = client.generate(request)
        for picture in (victim.result(), later):
            assert np.abs(picture.pixels.astype(float) - expected.pixels).mean() <= 1.0


@three_shards
def test_what_a_dead_model_is_for_is_refused_in_one_sentence(tiny: TinyServer) -> None:
    process = kill(tiny, tiny.inner("text_encoder"))
    wait_for(lambda: (state := process_state(process)) is None or not state.is_alive)  # a large one takes its time
    with pytest.raises(InferenceServerException) as caught:
        generate(tiny, tiny.model, **FIELDS)
    assert "sdxl_text_encoder is down and being loaded again; retry in a few seconds" in str(caught.value)
    assert "UNAVAILABLE" in str(caught.value.status())
