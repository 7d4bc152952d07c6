"""The clients and their command against the demo server."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swiftdiffusion.clients import (
    AsyncClient,
    Client,
    GenerationRequest,
    GenerationResult,
    InvalidRequest,
    Lora,
    ModelNotFound,
    Progress,
    RequestCancelled,
    RequestTimeout,
    StreamingUnsupported,
    SwiftDiffusionError,
)
from swiftdiffusion.clients.perf.load import INPUTS, Load, measure, read_requests
from swiftdiffusion.clients.perf.lora_metrics import read_lora_metrics
from swiftdiffusion.clients.perf.statistics import read_statistics
from swiftdiffusion.clients.perf.tool import PerfAnalyzerError, find_perf_analyzer
from swiftdiffusion.python_backends.server import TritonServer

PROMPT = "a red circle above a blue square on a white background"
REQUEST = GenerationRequest(PROMPT, seed=7, steps=3, height=128, width=128)
LONG = 200  # steps: more than any of these tests waits for
ONE_STEP = 0.3  # seconds in which a cancelled request meets its next step and ends, and a running one goes on


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: TritonServer) -> str:
    return server.grpc_url if request.param == "grpc" else server.http_url


def long_request(request_id: str) -> GenerationRequest:
    return GenerationRequest(PROMPT, steps=LONG, height=128, width=128, request_id=request_id)


def wait_until_running(url: str, model: str = "denoiser") -> None:
    """Until a request has made a step after this moment."""
    before = read_statistics(url)
    deadline = time.monotonic() + 60
    while model not in {work.model for work in read_statistics(url).work_since(before)}:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_client_gets_the_same_picture(server: TritonServer) -> None:
    async def asynchronous(url: str) -> GenerationResult:
        async with AsyncClient(url) as client:
            return await client.generate(REQUEST)

    results = [asyncio.run(asynchronous(url)) for url in (server.grpc_url, server.http_url)]
    for url in (server.grpc_url, server.http_url):
        with Client(url) as client:
            results.append(client.generate(REQUEST))
    for result in results:
        assert result.pixels.shape == (128, 128, 3)
        assert result.image.size == (128, 128)
        assert (result.info.seed, result.info.steps) == (7, 3)
        assert result.info.timings_ms
        assert (result.pixels == results[0].pixels).all()


def test_health_and_discovery(url: str) -> None:
    with Client(url) as client:
        client.wait_until_ready(30)
        assert client.is_ready()
        assert client.model() == "sdxl"
        assert client.can_stream() == url.startswith("grpc")
        health = client.health()
    assert health.ready
    assert re.match(r"\d+\.\d+", health.version)
    assert {"sdxl", "preprocess", "denoiser", "unet_shard0"} <= {model.name for model in health.models}
    assert {model.state for model in health.models} == {"READY"}


def test_stream_reports_steps_and_then_the_same_picture(server: TritonServer) -> None:
    with Client(server.grpc_url) as client:
        *progress, result = client.stream(REQUEST)
        assert isinstance(result, GenerationResult)
        assert (result.pixels == client.generate(REQUEST).pixels).all()
    assert [event.step for event in progress if isinstance(event, Progress)] == [1, 2]
    assert {event.of for event in progress if isinstance(event, Progress)} == {3}


def test_stream_needs_grpc(server: TritonServer) -> None:
    with Client(server.http_url) as client, pytest.raises(StreamingUnsupported, match="gRPC"):
        next(client.stream(REQUEST))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": -3}, "STEPS is -3; allowed"),
        ({"height": 65}, "HEIGHT is 65; allowed"),
        ({"scheduler": "nope"}, "SCHEDULER"),
        ({"loras": [Lora("nihgt")]}, 'LORAS names "nihgt"; allowed: .* the nearest: night'),
    ],
)
def test_bad_input_is_an_invalid_request_with_the_servers_sentence(
    url: str, values: dict[str, object], sentence: str
) -> None:
    request = GenerationRequest(PROMPT, **values)  # type: ignore[arg-type]
    with Client(url) as client:
        with pytest.raises(InvalidRequest, match=sentence):
            client.generate(request)
        if url.startswith("grpc"):
            with pytest.raises(InvalidRequest, match=sentence):
                list(client.stream(request))


def test_the_server_survives_streams_that_fail(server: TritonServer) -> None:
    for _ in range(60):
        with Client(server.grpc_url) as client, pytest.raises(InvalidRequest):
            list(client.stream(replace(REQUEST, scheduler="nope")))
    with Client(server.grpc_url) as client:
        assert client.is_ready()


def test_unknown_model(url: str) -> None:
    with Client(url, model="sd99") as client, pytest.raises(ModelNotFound, match="sd99"):
        client.generate(REQUEST)


def test_a_replay_gives_the_same_picture(url: str) -> None:
    loras = [Lora("night", 0.9), Lora("hatched", 0.7, patch_step=2)]  # as if this one had taken longer to load
    request = replace(REQUEST, seed=None, loras=loras, lora_bound=2)
    with Client(url) as client:
        first = client.generate(request)
        again = client.generate(first.replay())
        exact = client.generate(replace(request, seed=first.info.seed, loras=loras[:1], lora_bound=0))
    assert [(lora.name, lora.scale) for lora in first.info.loras] == [("night", 0.9), ("hatched", 0.7)]
    assert first.info.loras[1].patched_at_step == 2
    assert (first.pixels == again.pixels).all()
    assert (first.pixels != exact.pixels).any()
    for lora in again.info.loras:
        assert lora.source in ("gpu", "host")
        assert lora.modules is not None and lora.modules > 0
        assert None not in (lora.bound, lora.load_ms, lora.patch_ms, lora.waited_ms)


def test_cancel_by_id(url: str) -> None:
    caught: list[SwiftDiffusionError] = []

    def generate() -> None:
        try:
            client.generate(long_request("to-be-cancelled"))
        except SwiftDiffusionError as error:
            caught.append(error)

    with Client(url) as client:
        assert not client.cancel("nobody")
        thread = threading.Thread(target=generate)
        thread.start()
        wait_until_running(url)
        assert client.cancel("to-be-cancelled")
        thread.join(60)
        assert not client.cancel("to-be-cancelled")
    (error,) = caught
    assert isinstance(error, RequestCancelled)
    assert "to-be-cancelled" in str(error)


def test_a_cancelled_task_frees_the_server(url: str) -> None:
    async def run() -> bool:
        async with AsyncClient(url) as client:
            task = asyncio.create_task(client.generate(long_request("abandoned")))
            await asyncio.to_thread(wait_until_running, url)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(ONE_STEP)
            return await client.cancel("abandoned")

    assert not asyncio.run(run())


def test_a_task_cancelled_at_once_frees_the_server(url: str) -> None:
    async def run() -> bool:
        async with AsyncClient(url) as client:
            await client.model()
            task = asyncio.create_task(client.generate(long_request("hasty")))
            await asyncio.sleep(0.002)  # sent, but not with the denoiser yet
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.5)
            return await client.cancel("hasty")

    assert not asyncio.run(run())


def test_leaving_a_stream_frees_the_server(server: TritonServer) -> None:
    async def run(client: AsyncClient) -> bool:
        async with client, aclosing(client.stream(long_request("left"))) as events:
            async for event in events:
                assert isinstance(event, Progress)
                if event.step == 2:
                    break
            await events.aclose()
            await asyncio.sleep(ONE_STEP)
            return await client.cancel("left")

    assert not asyncio.run(run(AsyncClient(server.grpc_url)))
    with Client(server.grpc_url) as client:
        for event in client.stream(long_request("left-too")):
            assert isinstance(event, Progress)
            break
        time.sleep(ONE_STEP)
        assert not client.cancel("left-too")


@pytest.mark.parametrize("of_server", [True, False])
def test_timeouts(url: str, of_server: bool) -> None:
    request = GenerationRequest(PROMPT, steps=LONG, request_id="late", timeout_ms=500 if of_server else None)
    with Client(url, timeout=None if of_server else 0.5) as client:
        with pytest.raises(RequestTimeout, match="TIMEOUT_MS" if of_server else "within 0.5 s"):
            client.generate(request)
        time.sleep(ONE_STEP)
        assert not client.cancel("late")


def test_many_at_a_time_each_get_their_own(url: str) -> None:
    async def run() -> list[GenerationResult]:
        async with AsyncClient(url) as client:
            requests = [GenerationRequest(PROMPT, seed=seed, steps=2) for seed in range(6)]
            return await asyncio.gather(*map(client.generate, requests))

    results = asyncio.run(run())
    assert [result.info.seed for result in results] == list(range(6))
    assert len({result.pixels.tobytes() for result in results}) == 6


@pytest.fixture
def generate(url: str) -> Callable[..., "subprocess.Popen[str]"]:
    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).with_name("swiftdiffusion")), "generate", "--url", url, *arguments]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
        )

    return run


def test_command_writes_a_picture(tmp_path: Path, url: str, generate: Callable[..., "subprocess.Popen[str]"]) -> None:
    out = tmp_path / "new" / "x.png"
    lora = ("--lora", "night:0.8", "--lora-bound", "2", "--lora-patch-step", "1")
    process = generate(PROMPT, "--seed", "7", "--steps", "3", "--size", "128x128", *lora, "--out", str(out))
    answer, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    assert answer.strip() == str(out)
    assert "seed 7" in messages
    assert re.search(r"night:0\.8: on from step 1 in \d+ modules, .*, loaded in .* ms, patched in .* ms", messages)
    with Client(url) as client:
        same = replace(REQUEST, loras=[Lora("night", 0.8, patch_step=1)])
        assert (np.asarray(Image.open(out)) == client.generate(same).pixels).all()


def test_command_makes_a_sheet_of_several(tmp_path: Path, generate: Callable[..., "subprocess.Popen[str]"]) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "sheet.png"
    prompts.write_text("a green star\n\na blue square\n")
    process = generate(PROMPT, "--prompts", str(prompts), "--count", "2", "--steps", "1", "--out", str(out))
    _answer, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    assert messages.count("seed ") == 6
    assert Image.open(out).width > 3 * 128


def test_ctrl_c_cancels_on_the_server(url: str, generate: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = generate(PROMPT, "--steps", str(LONG))
    wait_until_running(url, "denoiser_stream" if url.startswith("grpc") else "denoiser")
    before = read_statistics(url)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert "cancel" in {work.model for work in read_statistics(url).work_since(before)}


def test_perf_measures_the_server_and_its_models(tmp_path: Path, server: TritonServer, url: str) -> None:
    try:
        tool = find_perf_analyzer()
    except PerfAnalyzerError as error:
        pytest.skip(str(error))
    requests = read_requests(INPUTS["loras"], {"STEPS": 2})
    load = Load(url, "sdxl", requests[1:], requests_per_window=2)  # the first one of all has no LoRA
    before, loras_before = read_statistics(url), read_lora_metrics(server.metrics_url)
    latency = measure(tool, load, 2, tmp_path)
    works = {work.model: work for work in read_statistics(url).work_since(before)}
    loras = read_lora_metrics(server.metrics_url).work_since(loras_before)
    assert latency.throughput > 0
    assert latency.percentiles_ms["p50"] <= latency.percentiles_ms["p99"]
    assert {"preprocess", "text_encoder", "denoiser", "vae_decoder", "unet_shard0"} <= set(works)
    assert works["denoiser"].compute_ms > 0
    assert loras is not None
    assert sum(load.count for load in loras.loads.values()) > 0
    assert loras.patches.mean_ms > 0
    assert works["denoiser"].calls >= 2 * works["vae_decoder"].calls - 4  # two steps a picture; some are under way
