"""What the door tells of requests: to their callers, in the log, in metrics."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import pytest

from doors import AUTHORIZED, GENERATIONS, KEY, DoorBefore, part


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(f'[alice]\nkey = "{KEY}"\nconcurrent = 1\n', "utf-8")
    return path


@pytest.mark.parametrize("given", ["a", "7f0c-1.2:x_Y", "x" * 128])
def test_ids_of_callers_are_taken_over(given: str) -> None:
    async def run() -> None:
        async with DoorBefore().client() as client:
            answer = await client.post(GENERATIONS, headers={"x-request-id": given})
            assert answer.headers["x-request-id"] == given
            assert answer.headers["x-seen"] == f"{given} 10.1.2.3"

    asyncio.run(run())


@pytest.mark.parametrize("given", [None, "", " ", "a b", "x" * 129, "a\nb", "ä", '"', "a caller=root", "../x", "a\x00"])
def test_where_there_is_none_or_a_strange_one_an_id_is_made_up(given: str | None) -> None:
    async def run() -> None:
        headers = {} if given is None else {"x-request-id": given}
        (_, first, _), (_, second, _) = [await DoorBefore().raw([part(b"")], headers) for _ in range(2)]
        assert re.fullmatch("[0-9a-f]{16}", first["x-request-id"])
        assert first["x-request-id"] != second["x-request-id"]

    asyncio.run(run())


@pytest.mark.parametrize("path", [GENERATIONS, "/nothing", "/broken", "/v1/images/files/x"])
def test_every_answer_has_the_headers_of_the_house(path: str) -> None:
    async def run() -> None:
        async with DoorBefore().client() as client:
            answer = await client.get(path)
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-request-id"]

    asyncio.run(run())


def test_a_request_is_one_line_without_anything_of_what_it_said(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "swiftdiffusion.gateway")

    async def run() -> None:
        async with DoorBefore(keys).client() as client:
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
        asyncio.run(DoorBefore().raw([part(b"")], client=client))
    callers = [record.getMessage().partition(" caller=")[2] for record in caplog.records]
    assert callers == ["unknown", "unknown", "unknown", "10.1.2.3", "2001:db8::1", "unknown"]


def test_requests_are_counted_by_what_there_is_and_by_nothing_that_callers_write() -> None:
    async def run() -> str:
        gateway = DoorBefore()
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
