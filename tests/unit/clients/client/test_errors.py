"""Statuses of both protocols become one exception per cause, with the server's sentence intact."""

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from swiftdiffusion.clients import (
    AsyncClient,
    Client,
    GenerationRequest,
    InvalidRequest,
    LoraUnavailable,
    ModelNotFound,
    RequestCancelled,
    RequestTimeout,
    ServerFailure,
    ServerUnavailable,
    ServerUnreachable,
)
from swiftdiffusion.clients.client.client import _BackgroundLoop
from swiftdiffusion.clients.client.errors import error_from_status


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("StatusCode.INVALID_ARGUMENT", "STEPS is -3; allowed: 1 to 200", InvalidRequest),
        ("400", "STEPS is -3; allowed: 1 to 200", InvalidRequest),
        ("StatusCode.NOT_FOUND", "unknown model", ModelNotFound),
        ("404", "unknown model", ModelNotFound),
        ("StatusCode.UNAVAILABLE", "controlnet canny is down", ServerUnavailable),
        ("503", "controlnet canny is down", ServerUnavailable),
        ("StatusCode.UNAVAILABLE", 'LORAS names "ink": its store does not have the file', LoraUnavailable),
        ("503", "in ensemble 'sdxl', LORAS names \"TIMEOUT_MS\": its store answers 500", LoraUnavailable),
        ("503", "LORAS: lora_store failed: boom", LoraUnavailable),
        ("400", 'LORAS names "ikn"; allowed: names of the catalogue, the nearest: ink', InvalidRequest),
        ("StatusCode.UNAVAILABLE", "TIMEOUT_MS passed after step 9 of 200", RequestTimeout),
        ("503", "TIMEOUT_MS passed after step 9 of 200", RequestTimeout),
        ("StatusCode.CANCELLED", 'REQUEST_ID "me" was cancelled after step 4', RequestCancelled),
        ("400", "in ensemble 'sdxl', REQUEST_ID \"me\" was cancelled after step 4", RequestCancelled),
        ("StatusCode.INTERNAL", "boom", ServerFailure),
        ("500", "boom", ServerFailure),
        (None, "boom", ServerFailure),
        (None, "in ensemble 'sdxl_stream', STEPS is -3; allowed: 1 to 200", InvalidRequest),
        (None, "PROMPT is missing; required: a text", InvalidRequest),
        (None, 'LORAS names "ikn"; allowed: names of the catalogue, the nearest: ink', InvalidRequest),
        (None, 'LORAS names "ink": the file is not valid safetensors: too short', InvalidRequest),
        (None, 'LORAS names "ink": its store does not have the file', LoraUnavailable),
        (None, 'LORAS names "ink": its file has 9.0 MiB; allowed: at most 8.0 MiB', InvalidRequest),
        (None, 'LORAS names "ink": its file cannot be read', LoraUnavailable),
        (None, 'LORAS names "ink", not loaded within 600 s', LoraUnavailable),
        (None, "unet_shard0 is down and does not load again: boom", ServerUnavailable),
        (None, "TIMEOUT_MS passed after step 9 of 200", RequestTimeout),
        (None, 'REQUEST_ID "me" was cancelled after step 4', RequestCancelled),
        (None, "Request for unknown model: 'sd99_stream' is not found", ModelNotFound),
    ],
)
def test_status_to_exception(status: str | None, message: str, kind: type[Exception]) -> None:
    error = error_from_status(status, message, "grpc://x:1")
    assert type(error) is kind
    assert str(error) == message


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nobody_there(scheme: str, closed_port: int) -> None:
    url = f"{scheme}://127.0.0.1:{closed_port}"
    with Client(url) as client:
        assert not client.is_ready()
        with pytest.raises(ServerUnreachable, match=f"no server answers at {url}"):
            client.generate(GenerationRequest("x"))
        with pytest.raises(ServerUnavailable, match="not ready within"):
            client.wait_until_ready(0.3)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost:21", "grpc://"])
def test_unusable_url(url: str) -> None:
    with Client(url) as client, pytest.raises(ValueError, match="server's URL is"):
        client.generate(GenerationRequest("x"))


def test_threads_share_one_background_loop() -> None:
    background = _BackgroundLoop()
    with ThreadPoolExecutor(8) as pool:
        loops = {id(future.result()) for future in [pool.submit(background.get) for _ in range(64)]}
    first = background.get()
    assert loops == {id(first)}
    background.forget()  # as after a fork
    assert background.get() is not first
    for loop in (first, background.get()):
        loop.call_soon_threadsafe(loop.stop)


def test_clients_work_in_threads_and_beside_a_running_loop(closed_port: int) -> None:
    url = f"grpc://127.0.0.1:{closed_port}"
    seen: list[type[Exception]] = []

    def ask(client: Client) -> None:
        try:
            client.health()
        except ServerUnreachable as error:
            seen.append(type(error))

    async def beside() -> None:
        with Client(url) as client:
            ask(client)
        async with AsyncClient(url) as client:
            with pytest.raises(ServerUnreachable):
                await client.health()

    with Client(url) as client:
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    asyncio.run(beside())
    assert seen == [ServerUnreachable] * 5
