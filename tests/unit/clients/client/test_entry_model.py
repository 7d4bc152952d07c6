"""Which model a client asks where it was told none."""

from __future__ import annotations

import asyncio

import pytest

from swiftdiffusion.clients import AsyncClient, ModelNotFound, ServerRestarting
from swiftdiffusion.clients.client import async_client as async_client_module


class Transport:
    """A server of which the test says which models are ready."""

    def __init__(self, *ready: str) -> None:
        self.ready = ready
        self.loads = False

    async def server_ready(self) -> bool:
        return not self.loads

    async def model_ready(self, model: str) -> bool:
        return model in self.ready

    async def close(self) -> None:
        """Nothing to close."""


def entry_model(monkeypatch: pytest.MonkeyPatch, *ready: str, loads: bool = False) -> str:
    transport = Transport(*ready)
    transport.loads = loads

    async def run() -> str:
        async with AsyncClient() as client:
            return await client.model()

    monkeypatch.setattr(async_client_module, "open_transport", lambda _url, _access: transport)
    return asyncio.run(run())


def test_the_family_that_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    assert entry_model(monkeypatch, "sdxl", "sd15") == "sdxl"
    assert entry_model(monkeypatch, "sd15", "cancel") == "sd15"


def test_a_server_with_neither_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFound, match="has none of sdxl and sd15 ready; if it has others, name one"):
        entry_model(monkeypatch, "anime")


def test_one_that_loads_has_neither_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerRestarting, match=r"^not begun: .* ready yet .*name one\); retry in a few seconds$"):
        entry_model(monkeypatch, "cancel", loads=True)
