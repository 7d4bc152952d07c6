"""Commands and snippets of docs/gateway.md and docs/editing.md about pictures, as they stand there."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from webuiapi import WebUIApi

if TYPE_CHECKING:
    from gateways import GatewayThread
    from swiftdiffusion.python_backends.launcher import TritonServer

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXTS = {name: (DOCS / name).read_text("utf-8") for name in ("gateway.md", "editing.md")}
COMMANDS = [command for text in TEXTS.values() for command in re.findall(r"(?m)^    (curl .*(?:\n {6,}.*)*)", text)]
GENERATED = re.findall(r"(?m)^    (swiftdiffusion generate .*)", TEXTS["editing.md"])
SNIPPET = next(block for block in re.findall(r"(?s)```python\n(.*?)```", TEXTS["editing.md"]) if "mask_image" in block)
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


def composited(made: Image.Image) -> bool:
    """Whether docs/scene.png changed where docs/mask.png is white, and nowhere else."""
    with Image.open(DOCS / "scene.png") as scene, Image.open(DOCS / "mask.png") as mask:
        inside = np.asarray(mask.convert("L")) > 0
        changed = (np.asarray(made.convert("RGB")) != np.asarray(scene.convert("RGB"))).any(2)
    return bool(changed[inside].mean() > 0.2 and not changed[~inside].any())


def test_they_are_found() -> None:
    assert (len(COMMANDS), len(GENERATED)) == (4, 3)


@pytest.mark.parametrize("command", GENERATED, ids=["image to image", "inpaint", "mask-aware"])
def test_generate_writes_a_picture(command: str, server: TritonServer, here: Path) -> None:
    program, *arguments = shlex.split(command)
    environment = os.environ | {"SWIFTDIFFUSION_URL": f"grpc://{server.grpc_url.removeprefix('grpc://')}"}
    whole = [str(Path(sys.executable).with_name(program)), *arguments]
    done = subprocess.run(whole, cwd=here, env=environment, capture_output=True, text=True, timeout=60, check=True)
    with Image.open(here / done.stdout.strip()) as made:
        assert made.size == (128, 128)
        assert composited(made) == ("--composite" in arguments)
    assert (" of the tokens, all in " in done.stderr) == ("--mask-aware" in arguments)


def test_the_python_client_edits(server: TritonServer, here: Path) -> None:
    values: dict[str, Any] = {}
    exec(SNIPPET.replace("Client()", f"Client({server.grpc_url!r})"), values)
    assert composited(values["edited"].image) and values["edited"].info.strength == 0.9


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl in PATH")
@pytest.mark.parametrize("command", COMMANDS, ids=["generation", "image to image", "inpaint", "triton"])
def test_curl_gets_a_picture(command: str, server: TritonServer, gateway: GatewayThread, here: Path) -> None:
    command = command.replace("127.0.0.1:8000", server.http_url.removeprefix("http://"))
    command = command.replace("127.0.0.1:8080", gateway.url.removeprefix("http://"))
    done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, timeout=60, check=True, cwd=here)
    (made,) = pictures(json.loads(done.stdout)) if done.stdout else [(here / "edited.png").read_bytes()]
    with Image.open(io.BytesIO(made)) as picture:
        assert (picture.format, picture.size) == ("PNG", (128, 128))
        assert composited(picture) == ("composite" in command.lower())


def test_openai_s_client_edits(gateway: GatewayThread, here: Path) -> None:
    with gateway.openai() as client:
        values: dict[str, Any] = {"client": client}
        exec(EDIT, values)
    edited = values["edited"]
    assert edited.mask == "white" and edited.data[0].info["kind"] == "inpaint"


def test_webuiapi_edits(gateway: GatewayThread, here: Path) -> None:
    values: dict[str, Any] = {"api": WebUIApi(baseurl=f"{gateway.url}/sdapi/v1", sampler="Euler")}
    exec(IMG2IMG, values)
    assert values["edited"].size == (128, 128)
