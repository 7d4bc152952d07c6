"""The README's curl commands, as they stand there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from gateways import GatewayThread
    from swiftdiffusion.python_backends.launcher import TritonServer

README = Path(__file__).resolve().parents[2] / "README.md"
COMMANDS = re.findall(r"(?m)^    (curl .*(?:\n {6,}.*)*)", README.read_text("utf-8"))
PICTURES = [command for command in COMMANDS if command.endswith("> x.png")]

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl in PATH")


def run(command: str, server: TritonServer, gateway: GatewayThread, directory: Path) -> str:
    """What a command prints, sent to these servers."""
    here = command.replace("127.0.0.1:8000", server.http_url.removeprefix("http://"))
    here = here.replace("127.0.0.1:8080", gateway.url.removeprefix("http://"))
    done = subprocess.run(["bash", "-ec", here], cwd=directory, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.mark.parametrize("command", PICTURES, ids=["triton", "gateway"])
def test_curl_alone_gets_a_picture(command: str, server: TritonServer, gateway: GatewayThread, tmp_path: Path) -> None:
    run(command, server, gateway, tmp_path)
    with Image.open(tmp_path / "x.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (128, 128))
        assert "a red circle" in picture.text["parameters"]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in PICTURES])
def test_curl_alone_learns_what_there_is(
    command: str, server: TritonServer, gateway: GatewayThread, tmp_path: Path
) -> None:
    assert "night" in run(command, server, gateway, tmp_path)
