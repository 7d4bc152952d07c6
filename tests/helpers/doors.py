"""A door of the gateway before a small application, and what comes in at it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI, Request, Response
from starlette.responses import StreamingResponse

from swiftdiffusion.clients.gateway.door import Door
from swiftdiffusion.clients.gateway.keys import Keys
from swiftdiffusion.clients.gateway.metrics import Metrics
from swiftdiffusion.clients.gateway.origins import Origins

KEY = "sk-alice-0123456789abcdef"
GENERATIONS = "/v1/images/generations"
AUTHORIZED = {"authorization": f"Bearer {KEY}"}
LIMIT = 1_000


class DoorBefore:
    """A door before routes that say what they got.

    Attributes:
        begun: Is set when a picture is being made.
        go_on: Ends that.
    """

    def __init__(self, keys: Path | None = None, body_seconds: float = 5.0) -> None:
        self.begun, self.go_on, self.metrics = asyncio.Event(), asyncio.Event(), Metrics()
        app = FastAPI()

        @app.post(GENERATIONS)
        async def echo(request: Request) -> Response:
            body = await request.body()
            return Response(body, headers={"x-seen": f"{request.state.request_id} {request.state.caller}"})

        @app.post("/sdapi/v1/txt2img")
        async def slow(_request: Request) -> Response:
            async def steps() -> AsyncIterator[bytes]:
                yield b"step"
                self.begun.set()
                await self.go_on.wait()

            return StreamingResponse(steps())

        @app.get("/v1/images/files/{name}")
        async def file(name: str) -> str:
            return name

        @app.get("/broken")
        async def broken() -> None:
            raise ZeroDivisionError

        self.door = Door(
            app,
            Keys(keys),
            Origins((), None, keys is not None),
            self.metrics,
            max_body_bytes=LIMIT,
            body_seconds=body_seconds,
        )

    def client(self) -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(self.door, raise_app_exceptions=False, client=("10.1.2.3", 123))
        return httpx2.AsyncClient(transport=transport, base_url="http://gateway")

    async def raw(
        self, received: list[dict[str, Any]], headers: Mapping[str, str] | None = None, **scope: Any
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer to ASGI messages, after the last of which nothing comes."""
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return received.pop(0) if received else await asyncio.Future()

        async def send(message: Any) -> None:
            sent.append(message)

        given = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
        default = {"type": "http", "method": "POST", "path": GENERATIONS, "headers": given, "query_string": b""}
        await self.door({**default, "client": ("10.1.2.3", 123), "server": ("gateway", 80), **scope}, receive, send)
        if not sent:
            return 0, {}, b""
        told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], told, b"".join(message.get("body", b"") for message in sent[1:])

    def counted(self) -> str:
        return self.metrics.text().decode()


def part(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}
