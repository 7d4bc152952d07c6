"""What every request passes before the application: the limits of its body, its key."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from doors import AUTHORIZED, GENERATIONS, KEY, LIMIT, DoorBefore, part


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(f'[alice]\nkey = "{KEY}"\nconcurrent = 1\n', "utf-8")
    return path


def test_a_body_within_its_limit_arrives_whole_in_one_part_or_several() -> None:
    async def run() -> None:
        gateway, body = DoorBefore(), bytes(range(250)) * 4
        async with gateway.client() as client:
            assert (await client.post(GENERATIONS, content=body)).content == body
        parts = [part(body[start : start + 100], start + 100 < LIMIT) for start in range(0, LIMIT, 100)]
        assert (await gateway.raw(parts))[::2] == (200, body)

    asyncio.run(run())


def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    async def run() -> None:
        status, _, body = await DoorBefore().raw([], {"content-length": str(LIMIT + 1)})
        assert status == 413
        assert b"allowed: 1000 bytes" in body

    asyncio.run(asyncio.wait_for(run(), 5))


def test_a_body_that_gets_too_large_is_refused_as_soon_as_it_is() -> None:
    async def run() -> None:
        gateway = DoorBefore()
        assert (await gateway.raw([part(b"x" * 501, True), part(b"x" * 500, True)]))[0] == 413
        assert 'refused_total{reason="request_too_large"} 1.0' in gateway.counted()

    asyncio.run(asyncio.wait_for(run(), 5))


def test_a_body_that_does_not_come_is_given_up() -> None:
    async def run() -> None:
        status, _, body = await DoorBefore(body_seconds=0.05).raw([part(b"{", True)])
        assert status == 408
        assert b"the body was not here within 0.05 s" in body

    asyncio.run(asyncio.wait_for(run(), 5))


def test_a_caller_that_goes_before_its_body_is_here_gets_no_answer() -> None:
    async def run() -> None:
        gateway = DoorBefore()
        assert (await gateway.raw([part(b"{", True), {"type": "http.disconnect"}]))[0] == 0
        assert 'requests_total{method="other",route="other",status="499"} 1.0' in gateway.counted()

    asyncio.run(asyncio.wait_for(run(), 5))


@pytest.mark.parametrize("path", [GENERATIONS, "/sdapi/v1/txt2img", "/v1/nothing", "/sdapi/", "/v1/images/files"])
def test_without_a_key_nothing_of_an_api_is_reached(keys: Path, path: str) -> None:
    async def run() -> None:
        async with DoorBefore(keys).client() as client:
            answer = await client.post(path, content=b"{}")
            assert answer.status_code == 401
            told = answer.json()
            assert "wanted: Authorization" in (told["error"]["message"] if path.startswith("/v1") else told["errors"])

    asyncio.run(run())


def test_pages_elsewhere_reach_no_api() -> None:
    async def run() -> None:
        async with DoorBefore().client() as client:
            for path in ("/v1/images/generations", "/sdapi/v1/txt2img"):
                answer = await client.post(path, headers={"origin": "https://evil.example"}, content=b"{}")
                assert answer.status_code == 403
                assert "a page of 'https://evil.example' sends this" in answer.text
            answer = await client.post("/nothing", content=b"x")
            assert answer.status_code == 413  # what no key guards reads no body

    asyncio.run(run())


def test_signed_urls_and_what_is_no_api_need_no_key(keys: Path) -> None:
    async def run() -> None:
        async with DoorBefore(keys).client() as client:
            assert (await client.get("/v1/images/files/a.png")).json() == "a.png"
            assert (await client.get("/openapi.json")).status_code == 200
            assert (await client.post(GENERATIONS, headers=AUTHORIZED)).status_code == 200

    asyncio.run(run())


@pytest.mark.parametrize(("root", "path"), [("/gateway", f"/gateway{GENERATIONS}"), ("/v", GENERATIONS)])
def test_keys_count_below_another_path_too(keys: Path, root: str, path: str) -> None:
    """As the gateway is when it is mounted in another application, or its server has a root path."""

    async def run() -> None:
        answer = await DoorBefore(keys).raw([part(b"{}")], path=path, root_path=root)
        assert answer[0] == 401

    asyncio.run(run())


def test_a_key_is_busy_until_its_answer_has_ended(keys: Path) -> None:
    async def run() -> None:
        gateway = DoorBefore(keys)
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
