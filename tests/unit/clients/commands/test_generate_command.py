"""`swiftdiffusion generate` before it reaches a server, and the composition of the command."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from swiftdiffusion.clients import LoraReport
from swiftdiffusion.clients.cli import app
from swiftdiffusion.clients.client.result import EditingReport
from swiftdiffusion.clients.commands.generate_command import describe_editing, describe_lora

runner = CliRunner()


@pytest.mark.parametrize("command", ["serve", "doctor", "generate", "export", "perf", "lora-mix"])
def test_every_command_has_help(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert command in result.output


def test_the_client_commands_do_not_import_torch() -> None:
    code = "import sys; import swiftdiffusion.clients.cli; sys.exit('torch' in sys.modules or 'grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "prompt"),
        (["x", "--size", "512"], "HEIGHTxWIDTH"),
        (["x", "--lora", "papercut:much"], "number"),
        (["x", "--control", "canny"], "NAME=IMAGE"),
        (["x", "--control", "union/pose=x.png"], "control mode"),
    ],
)
def test_bad_arguments_are_explained(arguments: list[str], complaint: str) -> None:
    result = runner.invoke(app, ["generate", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert complaint in result.output


def test_a_line_says_how_a_lora_was_applied() -> None:
    report = LoraReport(
        name="ink", scale=0.8, patched_at_step=2, source="disk", load_ms=61.24, patch_ms=20, waited_ms=7, modules=84
    )
    assert describe_lora(report) == (
        "ink:0.8: on from step 2 in 84 modules, from disk, loaded in 61.2 ms, patched in 20.0 ms, waited 7.0 ms"
    )
    resident = LoraReport(name="ink", patched_at_step=0, source="gpu", load_ms=0.1, patch_ms=0.0, waited_ms=0.0)
    assert describe_lora(resident) == "ink: on from step 0, resident, loaded in 0.1 ms, patched in 0.0 ms"
    assert describe_lora(LoraReport(name="ink")) == "ink: on"


def test_a_line_says_what_a_mask_aware_run_left_out() -> None:
    report = EditingReport(
        mode="tokens", mask=0.1, source="template", tokens=(0.1211, 0.25), exact_steps=(3, 10, 19), computed=0.284,
        misses=1, cache_error=0.0521, same_prompt=True,
    )  # fmt: skip
    assert describe_editing(report, 20) == (
        "mask-aware: computed 28% of the tokens, all in 3 of 20 steps, source template, "
        "steps that found nothing: 1, cache error 0.0521"
    )
    exact = EditingReport(mode="exact", mask=0.6, why="0.60 of the picture are masked")
    assert describe_editing(exact, 20) == "mask-aware: computed all tokens: 0.60 of the picture are masked"


def test_no_server_is_explained(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    result = runner.invoke(app, ["generate", "x", "--url", url, "--out", str(tmp_path / "x.png")])
    assert result.exit_code == 1
    assert f"no server answers at {url}" in result.output
    assert "swiftdiffusion serve" in result.output
    assert not (tmp_path / "x.png").exists()


class ShardDown(BaseHTTPRequestHandler):
    """Triton's HTTP API where every model is ready and every request fails."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(503, json.dumps({"error": "unet_shard0 and unet_shard1 are down"}).encode())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def url_of_a_server_without_shards() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), ShardDown) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_answers_need_not_be_started(url_of_a_server_without_shards: str, tmp_path: Path) -> None:
    out = str(tmp_path / "x.png")
    result = runner.invoke(app, ["generate", "x", "--url", url_of_a_server_without_shards, "--out", out])
    assert result.exit_code == 1
    assert "unet_shard0 and unet_shard1 are down" in result.output
    assert "swiftdiffusion serve" not in result.output
