"""The clients against the demo server."""

import asyncio
import re
import threading
from contextlib import aclosing
from dataclasses import replace

import pytest

from demo_requests import LONG, PROMPT, REQUEST, wait_until_running, wait_until_stopped
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
    ServerUnavailable,
    StreamingUnsupported,
    SwiftDiffusionError,
)
from swiftdiffusion.clients.client import async_client
from swiftdiffusion.python_backends.launcher import TritonServer


def long_request(request_id: str) -> GenerationRequest:
    return GenerationRequest(PROMPT, steps=LONG, height=512, width=512, request_id=request_id)


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
            await asyncio.to_thread(wait_until_stopped, url)
            return await client.cancel("abandoned")

    assert not asyncio.run(run())


def test_a_task_cancelled_at_once_frees_the_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_client, "_CANCEL_GRACE_SECONDS", 10.0)

    async def run() -> bool:
        async with AsyncClient(url) as client:
            await client.model()
            task = asyncio.create_task(client.generate(long_request("hasty")))
            await asyncio.sleep(0.002)  # sent, but not with the denoiser yet
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(wait_until_stopped, url)
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
            await asyncio.to_thread(wait_until_stopped, server.grpc_url)
            return await client.cancel("left")

    assert not asyncio.run(run(AsyncClient(server.grpc_url)))
    with Client(server.grpc_url) as client:
        for event in client.stream(long_request("left-too")):
            assert isinstance(event, Progress)
            break
        wait_until_stopped(server.grpc_url)
        assert not client.cancel("left-too")


@pytest.mark.parametrize("of_server", [True, False])
def test_timeouts(url: str, of_server: bool) -> None:
    """The server's own is foreseen: nothing begins."""
    request = GenerationRequest(PROMPT, steps=LONG, request_id="late", timeout_ms=500 if of_server else None)
    error, said = (ServerUnavailable, "TIMEOUT_MS allows") if of_server else (RequestTimeout, "within 0.5 s")
    with Client(url, timeout=None if of_server else 0.5) as client:
        with pytest.raises(error, match=said):
            client.generate(request)
        wait_until_stopped(url)
        assert not client.cancel("late")


def test_many_at_a_time_each_get_their_own(url: str) -> None:
    async def run() -> list[GenerationResult]:
        async with AsyncClient(url) as client:
            requests = [GenerationRequest(PROMPT, seed=seed, steps=2) for seed in range(6)]
            return await asyncio.gather(*map(client.generate, requests))

    results = asyncio.run(run())
    assert [result.info.seed for result in results] == list(range(6))
    assert len({result.pixels.tobytes() for result in results}) == 6
