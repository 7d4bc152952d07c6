"""What a client sends again, and what not; the server is one of which the test says what it answers."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from swiftdiffusion.clients import (
    AsyncClient,
    GenerationRequest,
    GenerationResult,
    InvalidRequest,
    Progress,
    RequestTimeout,
    ServerRestarting,
    ServerUnavailable,
    SwiftDiffusionError,
)
from swiftdiffusion.clients.client import async_client as async_client_module
from swiftdiffusion.clients.client import retries
from swiftdiffusion.clients.client.errors import error_from_status

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from swiftdiffusion.clients.client.request import Tensor

DOWN = "in ensemble 'sdxl', not begun: vae_decoder is down and being loaded again; retry in a few seconds"
LOST_TO_A_MODEL = "in ensemble 'sdxl', vae_decoder is down and being loaded again; retry in a few seconds"
LOST = "Stub process 'denoiser_0_0' is not healthy."
AT_THE_DOOR = "in ensemble 'sdxl', Stub process 'preprocess_0_0' is not healthy."
UNKNOWN = "Request for unknown model: 'sdxl' has no available versions"
DRAINING = "the server is about to stop and takes no new requests; retry elsewhere"


def restarting(message: str = DOWN) -> SwiftDiffusionError:
    return error_from_status("StatusCode.INTERNAL", message, "grpc://there")


class Server:
    """Fails as often as it is told, then answers; keeps the requests that came."""

    def __init__(self, *failures: SwiftDiffusionError) -> None:
        self._failures = list(failures)
        self.seeds: list[int] = []
        self.loads_for = 0  # looks at it

    async def model_ready(self, _model: str) -> bool:
        self.loads_for -= 1
        return self.loads_for < 0

    async def server_ready(self) -> bool:
        return self.loads_for < 0

    async def infer(self, _model: str, tensors: Sequence[Tensor], outputs: Any = ()) -> dict[str, Any]:
        del outputs
        self.seeds += [int(tensor.data.item()) for tensor in tensors if tensor.name == "SEED"]
        if self._failures:
            raise self._failures.pop(0)
        info = np.array([[json.dumps({"seed": self.seeds[-1] if self.seeds else 0}).encode()]], dtype=object)
        return {"IMAGE": np.zeros((1, 8, 8, 3), np.uint8), "INFO": info, "CANCELLED": np.array([[True]])}

    async def stream(self, model: str, tensors: Sequence[Tensor]) -> AsyncGenerator[dict[str, Any], None]:
        for step in (1, 2, 3):
            info = np.array([[json.dumps({"step": step, "of": 4}).encode()]], dtype=object)
            yield {"IMAGE": None, "INFO": info}
            if step == 2 and self._failures:
                raise self._failures.pop(0)
        yield await self.infer(model, tensors)

    async def close(self) -> None:
        """Nothing to close."""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSES_S", (0.0, 0.01))
    monkeypatch.setattr(retries, "ASK_EVERY_S", 0.01)


def client(monkeypatch: pytest.MonkeyPatch, server: Server, **options: Any) -> AsyncClient:
    monkeypatch.setattr(async_client_module, "open_transport", lambda *_: server)
    return AsyncClient(**options)


@pytest.mark.parametrize(
    "message", [DOWN, LOST, LOST_TO_A_MODEL, "Failed to obtain the health mutex.", UNKNOWN, DRAINING]
)
def test_what_met_a_dead_process_is_sent_again_with_the_same_seed(
    monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    server = Server(restarting(message), restarting(message))
    result = asyncio.run(client(monkeypatch, server, retries=2).generate(GenerationRequest("a cat")))
    assert len(server.seeds) == 3
    assert set(server.seeds) == {result.info.seed}


@pytest.mark.parametrize("message", [LOST, LOST_TO_A_MODEL])
def test_no_more_often_than_it_was_asked_to(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    for most in (0, 2):
        server = Server(*(restarting(message) for _ in range(5)))
        with pytest.raises(ServerRestarting, match=message):
            asyncio.run(client(monkeypatch, server, retries=most).generate(GenerationRequest("a cat", seed=1)))
        assert server.seeds == [1] * (1 + most)


@pytest.mark.parametrize("message", [DOWN, UNKNOWN, DRAINING])
def test_waiting_for_a_server_that_cannot_begin_uses_up_no_try(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    server = Server(*(restarting(message) for _ in range(9)), restarting(LOST))
    asyncio.run(client(monkeypatch, server, retries=1).generate(GenerationRequest("a cat", seed=1)))
    assert server.seeds == [1] * 11


def test_nor_does_waiting_for_one_that_takes_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = error_from_status("StatusCode.UNAVAILABLE", "failed to connect to all addresses", "grpc://there")
    server = Server(nobody, nobody, restarting(LOST))
    asyncio.run(client(monkeypatch, server, retries=1).generate(GenerationRequest("a cat", seed=1)))
    assert server.seeds == [1] * 4


def test_such_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PATIENCE_S", 0.2)
    server = Server(*(restarting() for _ in range(100)))
    with pytest.raises(ServerRestarting, match="not begun"):
        asyncio.run(client(monkeypatch, server, retries=2).generate(GenerationRequest("a cat", seed=1)))
    assert 3 < len(server.seeds) < 50


def test_who_has_no_tries_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(restarting())
    with pytest.raises(ServerRestarting, match="not begun"):
        asyncio.run(client(monkeypatch, server).generate(GenerationRequest("a cat", seed=1)))
    assert server.seeds == [1]


@pytest.mark.parametrize(
    "message",
    [
        "REQUEST_ID \"Stub process 'a' is not healthy\" was cancelled after step 3 of 9",
        'SCHEDULER is "x; retry in a few seconds"; allowed: euler',
        'LORAS names "has no available versions; retry elsewhere", not loaded',
    ],
)
def test_what_a_request_says_of_itself_is_no_sign(message: str) -> None:
    assert not isinstance(error_from_status("StatusCode.INTERNAL", message, "grpc://there"), ServerRestarting)


@pytest.mark.parametrize("error", [InvalidRequest("STEPS is 0; allowed: 1 to 200"), ServerUnavailable("too late")])
def test_what_would_end_the_same_way_is_not(monkeypatch: pytest.MonkeyPatch, error: SwiftDiffusionError) -> None:
    server = Server(error)
    with pytest.raises(type(error)):
        asyncio.run(client(monkeypatch, server, retries=3).generate(GenerationRequest("a cat", seed=1)))
    assert server.seeds == [1]


def test_the_timeout_is_that_of_all_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSES_S", (60.0,))
    with pytest.raises(RequestTimeout):
        asyncio.run(
            client(monkeypatch, Server(restarting(LOST)), retries=3, timeout=0.1).generate(GenerationRequest("a cat"))
        )


def test_a_stream_that_begins_again_tells_no_step_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    async def events() -> list[Progress | GenerationResult]:
        return [
            each async for each in client(monkeypatch, Server(restarting()), retries=1).stream(GenerationRequest("a"))
        ]

    *steps, picture = asyncio.run(events())
    assert [each.step for each in steps if isinstance(each, Progress)] == [1, 2, 3]
    assert isinstance(picture, GenerationResult)


@pytest.mark.parametrize("model", ["preprocess", "my-anime_preprocess"])
def test_what_is_lost_at_the_door_is_sent_as_often_again_beside_the_others(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    lost, at_the_door = restarting(LOST), restarting(AT_THE_DOOR.replace("preprocess", model))
    request = GenerationRequest("a cat", seed=1)
    asyncio.run(client(monkeypatch, Server(*2 * [at_the_door], *2 * [lost]), retries=2).generate(request))
    with pytest.raises(ServerRestarting, match=model):
        asyncio.run(client(monkeypatch, Server(*5 * [at_the_door]), retries=2).generate(request))


def test_a_controlnet_is_no_door(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(*2 * [restarting(AT_THE_DOOR.replace("preprocess", "controlnet_preprocess"))])
    with pytest.raises(ServerRestarting, match="controlnet"):
        asyncio.run(client(monkeypatch, server, retries=1).generate(GenerationRequest("a cat", seed=1)))


def test_the_entry_model_is_waited_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    server.loads_for = 9
    asyncio.run(client(monkeypatch, server, retries=1).generate(GenerationRequest("a cat", seed=1)))
    assert server.seeds == [1]
