"""What strangers send over a real socket: all of it is their mistake, and nothing of it is in the gateway's log."""

from __future__ import annotations

import base64
import io
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from PIL import Image

from gateways import GatewayProcess, gateway_process
from swiftdiffusion.python_backends.launcher import TritonServer

KEY = "sk-alice-0123456789abcdef"
ROUTE = "/v1/images/generations"
SECRET = "a prompt that nobody else may read"
ASKED: dict[str, Any] = {"prompt": SECRET, "size": "64x64", "num_inference_steps": 2}


@pytest.fixture(scope="module")
def gateway(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """With a key, small bodies and little patience."""
    directory = tmp_path_factory.mktemp("gateway")
    (directory / "keys.toml").write_text(f'[alice]\nkey = "{KEY}"\nconcurrent = 4\n')
    arguments = ("--server", server.grpc_url, "--keys", str(directory / "keys.toml"), "--max-body-mib", "24")
    with gateway_process(directory / "log", *arguments) as running:
        yield running


@pytest.fixture(autouse=True)
def unharmed(gateway: GatewayProcess) -> Iterator[None]:
    """After each of these a picture comes, and nothing of what was said is in the log."""
    yield
    answer = post(gateway, {**ASKED, "prompt": "a cat"})
    assert answer.status_code == 200
    assert gateway.runs() == 0
    log = gateway.log
    assert not any(secret in log for secret in (KEY, SECRET, PICTURE[:40], "ERROR request", "ERROR picture"))


def picture(width: int = 64, height: int = 64) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(stream, "PNG")
    return stream.getvalue()


PICTURE = base64.b64encode(picture()).decode()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb() -> str:
    """Of 50000 by 50000 pixels, in base64."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(20_000_000), 9))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")).decode()


def post(gateway: GatewayProcess, body: Any, **how: Any) -> httpx2.Response:
    how = {"json": body} if not isinstance(body, bytes) else {"content": body, **how}
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json", **how.pop("headers", {})}
    return httpx2.post(f"{gateway.url}{ROUTE}", headers=headers, timeout=60, **how)


def said(answer: httpx2.Response, status: int) -> str:
    assert answer.status_code == status, answer.text[:300]
    assert answer.headers["x-request-id"]
    return str(answer.json()["error"]["message"])


def resident_kib(gateway: GatewayProcess) -> int:
    """Most memory that the process has had."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def controlnet(image: str) -> dict[str, Any]:
    return {**ASKED, "controlnet": {"name": "edges", "image": image}}


def test_a_bomb_takes_no_memory(gateway: GatewayProcess) -> None:
    post(gateway, controlnet(PICTURE)).raise_for_status()
    before = resident_kib(gateway)
    assert "is too large; allowed: at most 16777216 pixels" in said(post(gateway, controlnet(bomb())), 400)
    two = [{"name": "edges", "image": PICTURE}, {"name": "layout", "image": base64.b64encode(picture(8, 8)).decode()}]
    assert "99999" in said(post(gateway, {**ASKED, "size": "99999x99999", "controlnet": two}), 400)
    assert resident_kib(gateway) - before < 2**16


@pytest.mark.parametrize(
    "image", [PICTURE[:-5], PICTURE[: len(PICTURE) // 2 // 4 * 4], "", "!" * 100_000, "file:///etc/passwd"]
)
def test_what_is_no_picture_is_refused(gateway: GatewayProcess, image: str) -> None:
    assert said(post(gateway, controlnet(image)), 400).startswith("controlnet[0].image is no ")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{" + b",".join(b'"k%d":0' % number for number in range(10**6)) + b"}", 400),
        (b"[" * 10**6, 400),
        (b'{"prompt":' * 1000 + b"1" + b"}" * 1000, 400),
        (b"\x00" * 10**6, 400),
        (b'{"prompt": "' + b"x" * 10**7 + b'"}', 400),
        (b'{"prompt": "\\u0000", "num_inference_steps": -1}', 400),
        (b"", 400),
        (b"x" * (24 * 2**20 + 1), 413),
    ],
    ids=["keys", "lists", "levels", "zeros", "long prompt", "NUL", "nothing", "too large"],
)
def test_bodies_are_refused_soon(gateway: GatewayProcess, body: bytes, status: int) -> None:
    began = time.monotonic()
    assert said(post(gateway, body), status)
    assert time.monotonic() - began < 10


def test_a_large_upload_of_a_form_is_refused(gateway: GatewayProcess) -> None:
    files = {"image": ("a.png", b"\x89PNG" + bytes(64 * 2**20), "image/png")}
    answer = httpx2.post(
        f"{gateway.url}{ROUTE}",
        headers={"authorization": f"Bearer {KEY}"},
        files=files,
        data={"prompt": SECRET},
        timeout=60,
    )
    assert "allowed: 25165824 bytes" in said(answer, 413)
    small = {"image": ("a.png", picture(), "image/png")}
    answer = httpx2.post(f"{gateway.url}{ROUTE}", headers={"authorization": f"Bearer {KEY}"}, files=small, timeout=60)
    assert "Content-Type is 'multipart/form-data'; allowed: application/json" in said(answer, 415)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "night\x00", "..\\x", "x" * 128, "https://evil.example/x", "💥"]
)
def test_names_of_loras_are_looked_up_and_nothing_else(gateway: GatewayProcess, name: str) -> None:
    assert said(post(gateway, {**ASKED, "lora": {"name": name}}), 400).startswith("LORAS")
    assert said(post(gateway, {**ASKED, "model": f"sdxl:{name}"}), 400).startswith("LORAS")
    assert said(post(gateway, {**ASKED, "model": name}), 404).startswith("no pipeline is called")


def exchange(gateway: GatewayProcess, request: bytes, seconds: float = 60.0) -> bytes:
    """What comes back for bytes, as they are, until the connection is closed or for so long nothing comes."""
    address = urlsplit(gateway.url)
    answer = b""
    with suppress(OSError), socket.create_connection((address.hostname, address.port), timeout=seconds) as connection:
        connection.sendall(request)
        while part := connection.recv(65536):
            answer += part
    return answer


PATHS = (
    "/v1/images/files/..%2f..%2fetc/passwd",
    "/v1/images/files/../../../../etc/passwd",
    "/v1/images/files/%2e%2e/%2e%2e/etc/passwd?expires=1&signature=x",
    "/v1/images/files/..%2f..%2fkeys.toml?expires=99999999999&signature=" + "0" * 64,
    "/v1/images/files/x.png",
    "/v1/images/files/x.png?expires=" + "9" * 5000 + "&signature=x",
    "/v1/images/files/x.png?expires=1&signature=%ff%00",
    "/v1/images/files/",
    "/v1/images/files/../generations",
    "/page/../keys.py",
    "/page/..%2fkeys.py",
    "/page/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/page//etc/passwd",
    "/page/..%5ckeys.py",
    "/page/%00",
    "/page/" + "a" * 5000,
    "/v1/models/../../etc/passwd",
    "//v1/models",
    "/v1//models",
    "/%76%31/models",
    "/v1/models/",
    "/sdapi/v1/../../etc/passwd",
    "*",
    "http://evil.example/v1/models",
)


@pytest.mark.parametrize("path", PATHS)
def test_paths_lead_nowhere(gateway: GatewayProcess, path: str) -> None:
    """Written by hand: clients would tidy them up. Without a key, and not one of them gets anything."""
    answer = exchange(gateway, f"GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n".encode())
    status = int(answer.split(b" ", 2)[1])
    assert status == 307 or 400 <= status < 500, answer[:300]
    assert not any(secret in answer for secret in (b"root:", b"[alice]", b"hashlib", KEY.encode(), b'"list"'))


MALFORMED = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "negative length": b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n" % ROUTE.encode(),
    "length of letters": b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1e9\r\n\r\n" % ROUTE.encode(),
    "two lengths": b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}" % ROUTE.encode(),
    "chunk": b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" % ROUTE.encode(),
    "long header": b"GET /health HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n" % (b"y" * 200_000),
    "long path": b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"/" * 100_000),
    "header of bytes": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: \xff\xfe\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_hardly_http_ends_its_connection_alone(gateway: GatewayProcess, case: str) -> None:
    answer = exchange(gateway, MALFORMED[case], 3)
    assert answer == b"" or 400 <= int(answer.split(b" ", 2)[1]) < 500


@pytest.mark.parametrize("host", ["evil.example", "[", "a b", "x" * 5000, "evil.example/path?", "é"])
def test_a_strange_host_is_its_caller_s_own_problem(gateway: GatewayProcess, host: str) -> None:
    body = b'{"prompt": "a cat", "size": "64x64", "num_inference_steps": 1, "response_format": "url"}'
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    request = head.encode("latin-1") + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
    status = int(exchange(gateway, request).split(b" ", 2)[1])
    assert status == 200 or 400 <= status < 500
