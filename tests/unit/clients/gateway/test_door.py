"""What every request passes before, and after, the application: here a small one behind the real door."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
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


class Gateway:
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


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(f'[alice]\nkey = "{KEY}"\nconcurrent = 1\n', "utf-8")
    return path


def part(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_within_its_limit_arrives_whole_in_one_part_or_several() -> None:
    async def run() -> None:
        gateway, body = Gateway(), bytes(range(250)) * 4
        async with gateway.client() as client:
            assert (await client.post(GENERATIONS, content=body)).content == body
        parts = [part(body[start : start + 100], start + 100 < LIMIT) for start in range(0, LIMIT, 100)]
        assert (await gateway.raw(parts))[::2] == (200, body)

    asyncio.run(run())


def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    async def run() -> None:
        status, _, body = await Gateway().raw([], {"content-length": str(LIMIT + 1)})
        assert status == 413
        assert b"allowed: 1000 bytes" in body

    asyncio.run(asyncio.wait_for(run(), 5))


def test_a_body_that_gets_too_large_is_refused_as_soon_as_it_is() -> None:
    async def run() -> None:
        gateway = Gateway()
        assert (await gateway.raw([part(b"x" * 501, True), part(b"x" * 500, True)]))[0] == 413
        assert 'refused_total{reason="request_too_large"} 1.0' in gateway.counted()

    asyncio.run(asyncio.wait_for(run(), 5))


def test_a_body_that_does_not_come_is_given_up() -> None:
    async def run() -> None:
        status, _, body = await Gateway(body_seconds=0.05).raw([part(b"{", True)])
        assert status == 408
        assert b"the body was not here within 0.05 s" in body

    asyncio.run(asyncio.wait_for(run(), 5))


def test_a_caller_that_goes_before_its_body_is_here_gets_no_answer() -> None:
    async def run() -> None:
        gateway = Gateway()
        assert (await gateway.raw([part(b"{", True), {"type": "http.disconnect"}]))[0] == 0
        assert 'requests_total{method="other",route="other",status="499"} 1.0' in gateway.counted()

    asyncio.run(asyncio.wait_for(run(), 5))


@pytest.mark.parametrize("path", [GENERATIONS, "/sdapi/v1/txt2img", "/v1/nothing", "/sdapi/", "/v1/images/files"])
def test_without_a_key_nothing_of_an_api_is_reached(keys: Path, path: str) -> None:
    async def run() -> None:
        async with Gateway(keys).client() as client:
            answer = await client.post(path, content=b"{}")
            assert answer.status_code == 401
            told = answer.json()
            assert "wanted: Authorization" in (told["error"]["message"] if path.startswith("/v1") else told["errors"])

    asyncio.run(run())


def test_pages_elsewhere_reach_no_api() -> None:
    async def run() -> None:
        async with Gateway().client() as client:
            for path in ("/v1/images/generations", "/sdapi/v1/txt2img"):
                answer = await client.post(path, headers={"origin": "https://evil.example"}, content=b"{}")
                assert answer.status_code == 403
                assert "a page of 'https://evil.example' sends this" in answer.text
            answer = await client.post("/nothing", content=b"x")
            assert answer.status_code == 413  # what no key guards reads no body

    asyncio.run(run())


def test_signed_urls_and_what_is_no_api_need_no_key(keys: Path) -> None:
    async def run() -> None:
        async with Gateway(keys).client() as client:
            assert (await client.get("/v1/images/files/a.png")).json() == "a.png"
            assert (await client.get("/openapi.json")).status_code == 200
            assert (await client.post(GENERATIONS, headers=AUTHORIZED)).status_code == 200

    asyncio.run(run())


@pytest.mark.parametrize(("root", "path"), [("/gateway", f"/gateway{GENERATIONS}"), ("/v", GENERATIONS)])
def test_keys_count_below_another_path_too(keys: Path, root: str, path: str) -> None:
    """As the gateway is when it is mounted in another application, or its server has a root path."""

    async def run() -> None:
        answer = await Gateway(keys).raw([part(b"{}")], path=path, root_path=root)
        assert answer[0] == 401

    asyncio.run(run())


def test_a_key_is_busy_until_its_answer_has_ended(keys: Path) -> None:
    async def run() -> None:
        gateway = Gateway(keys)
        async with gateway.client() as client:
            first = asyncio.create_task(client.post("/sdapi/v1/txt2img", headers=AUTHORIZED))
            await gateway.begun.wait()
            refused = await client.post(GENERATIONS, headers=AUTHORIZED)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            gateway.go_on.set()
            assert (await first).status_code == 200
            assert (await client.post(GENERATIONS, headers=AUTHORIZED)).status_code == 200
        assert 'refused_total{reason="rate_limit_exceeded"} 1.0' in gateway.counted()

    asyncio.run(asyncio.wait_for(run(), 10))


@pytest.mark.parametrize("given", ["a", "7f0c-1.2:x_Y", "x" * 128])
def test_ids_of_callers_are_taken_over(given: str) -> None:
    async def run() -> None:
        async with Gateway().client() as client:
            answer = await client.post(GENERATIONS, headers={"x-request-id": given})
            assert answer.headers["x-request-id"] == given
            assert answer.headers["x-seen"] == f"{given} 10.1.2.3"

    asyncio.run(run())


@pytest.mark.parametrize("given", [None, "", " ", "a b", "x" * 129, "a\nb", "ä", '"', "a caller=root", "../x", "a\x00"])
def test_where_there_is_none_or_a_strange_one_an_id_is_made_up(given: str | None) -> None:
    async def run() -> None:
        headers = {} if given is None else {"x-request-id": given}
        (_, first, _), (_, second, _) = [await Gateway().raw([part(b"")], headers) for _ in range(2)]
        assert re.fullmatch("[0-9a-f]{16}", first["x-request-id"])
        assert first["x-request-id"] != second["x-request-id"]

    asyncio.run(run())


@pytest.mark.parametrize("path", [GENERATIONS, "/nothing", "/broken", "/v1/images/files/x"])
def test_every_answer_has_the_headers_of_the_house(path: str) -> None:
    async def run() -> None:
        async with Gateway().client() as client:
            answer = await client.get(path)
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-request-id"]

    asyncio.run(run())


def test_a_request_is_one_line_without_anything_of_what_it_said(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "swiftdiffusion.gateway")

    async def run() -> None:
        async with Gateway(keys).client() as client:
            url = f"{GENERATIONS}?secret=query"
            await client.post(url, content=b"secret prompt", headers={**AUTHORIZED, "x-request-id": "mine"})
            await client.post(url, headers={"authorization": "Bearer secret"})
            await client.get("/v1/images/files/secret.png?signature=secret")
            await client.request("SECRET", GENERATIONS, headers=AUTHORIZED)
            await client.get("/secret/path")

    asyncio.run(run())
    lines = [record.getMessage() for record in caplog.records if record.name == "swiftdiffusion.gateway"]
    assert [re.sub(r"\d\.\d{3} s id=[0-9a-f]{16}", "T", line) for line in lines[1:]] == [
        "other other 401 T caller=10.1.2.3",
        "GET /v1/images/files/{name} 200 T caller=10.1.2.3",
        "other /v1/images/generations 405 T caller=alice",
        "other other 404 T caller=10.1.2.3",
    ]
    assert re.fullmatch(r"POST /v1/images/generations 200 \d\.\d{3} s id=mine caller=alice", lines[0])
    assert not any(secret in caplog.text for secret in ("secret", "SECRET", KEY))


def test_an_address_that_a_proxy_made_up_is_not_in_the_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "swiftdiffusion.gateway")
    for address in ("evil text caller=root", "a\nb", "x" * 500, "10.1.2.3", "2001:db8::1", None):
        client = None if address is None else (address, 1)
        asyncio.run(Gateway().raw([part(b"")], client=client))
    callers = [record.getMessage().partition(" caller=")[2] for record in caplog.records]
    assert callers == ["unknown", "unknown", "unknown", "10.1.2.3", "2001:db8::1", "unknown"]


def test_requests_are_counted_by_what_there_is_and_by_nothing_that_callers_write() -> None:
    async def run() -> str:
        gateway = Gateway()
        async with gateway.client() as client:
            for number in range(20):
                await client.post(GENERATIONS)
                await client.request(f"METHOD{number}", GENERATIONS)
                await client.get(f"/nothing/{number}")
                await client.get(f"/v1/images/files/{number}")
            await client.get("/broken")
        return gateway.counted()

    counted = asyncio.run(run())
    labels = re.findall(r"swiftdiffusion_gateway_requests_total\{(.*)\} ([\d.]+)", counted)
    assert sorted(labels) == [
        ('method="GET",route="/broken",status="500"', "1.0"),
        ('method="GET",route="/v1/images/files/{name}",status="200"', "20.0"),
        ('method="POST",route="/v1/images/generations",status="200"', "20.0"),
        ('method="other",route="/v1/images/generations",status="405"', "20.0"),
        ('method="other",route="other",status="404"', "20.0"),
    ]
    assert f'request_seconds_count{{route="{GENERATIONS}"}} 40.0' in counted
