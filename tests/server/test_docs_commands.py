"""Commands and snippets of docs/gateway.md and docs/editing.md about pictures, as they stand there."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from PIL import Image
from webuiapi import WebUIApi

if TYPE_CHECKING:
    from gateways import GatewayThread
    from swiftdiffusion.python_backends.launcher import TritonServer

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXTS = {name: (DOCS / name).read_text("utf-8") for name in ("gateway.md", "editing.md")}
COMMANDS = [command for text in TEXTS.values() for command in re.findall(r"(?m)^    (curl .*(?:\n {6,}.*)*)", text)]
EDIT, IMG2IMG = (
    next(block for block in re.findall(r"(?s)```python\n(.*?)```", TEXTS["gateway.md"]) if f".{name}(" in block)
    for name in ("images.edit", "img2img")
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the pictures that they speak of."""
    (tmp_path / "docs").symlink_to(DOCS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(answer: dict[str, Any]) -> list[bytes]:
    """Of OpenAI's API."""
    data = answer["data"]
    return [base64.b64decode(each["b64_json"]) if "b64_json" in each else _fetched(each["url"]) for each in data]


def _fetched(url: str) -> bytes:
    return httpx2.get(url).raise_for_status().content


def test_they_are_found() -> None:
    assert len(COMMANDS) == 4


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl in PATH")
@pytest.mark.parametrize("command", COMMANDS, ids=["generation", "image to image", "inpaint", "triton"])
def test_curl_gets_a_picture(command: str, server: TritonServer, gateway: GatewayThread, here: Path) -> None:
    command = command.replace("127.0.0.1:8000", server.http_url.removeprefix("http://"))
    command = command.replace("127.0.0.1:8080", gateway.url.removeprefix("http://"))
    done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, timeout=60, check=True, cwd=here)
    (made,) = pictures(json.loads(done.stdout)) if done.stdout else [(here / "edited.png").read_bytes()]
    with Image.open(io.BytesIO(made)) as picture:
        assert (picture.format, picture.size) == ("PNG", (128, 128))
        with Image.open(here / "docs/scene.png") as scene:
            assert picture.convert("RGB").tobytes() != scene.convert("RGB").tobytes()


def test_openai_s_client_edits(gateway: GatewayThread, here: Path) -> None:
    with gateway.openai() as client:
        values: dict[str, Any] = {"client": client}
        exec(EDIT, values)
    edited = values["edited"]
    assert edited.mask == "white" and edited.data[0].info["kind"] == "inpaint"


def test_webuiapi_edits(gateway: GatewayThread, here: Path) -> None:
    values: dict[str, Any] = {"api": WebUIApi(baseurl=f"{gateway.url}/sdapi/v1", sampler="Euler")}
    exec(IMG2IMG.replace("api.img2img(images=[old], mask", "edited = api.img2img(images=[old], mask"), values)
    assert values["edited"].size == (128, 128)
