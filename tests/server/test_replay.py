"""A trace replayed at a real server, through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from swiftdiffusion.clients.cli import app
from swiftdiffusion.clients.load.drawing import TraceArguments, draw_trace
from swiftdiffusion.clients.load.trace import read_trace

if TYPE_CHECKING:
    from conftest import TinyServer

ARGUMENTS = TraceArguments("A", rate=5, seconds=2, seed=1, steps=3)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    draw_trace(ARGUMENTS, ["a red circle", "a cat on a blue square"]).write(tmp_path / "trace.jsonl")
    return tmp_path / "trace.jsonl"


def replayed(trace: Path, tiny: TinyServer, *options: str) -> dict[str, Any]:
    """The result file of a replay."""
    written = trace.with_name("report.json")
    command = ["replay", str(trace), "--url", tiny.grpc_url, "--model", tiny.model, "--json", str(written), *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return json.loads(written.read_text())


def test_every_request_is_answered_and_reported(trace: Path, pipelines: dict[str, TinyServer], tmp_path: Path) -> None:
    tiny = pipelines["sdxl"]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "control.png")
    controls = [f"--controlnet={name}={tmp_path / 'control.png'}" for name in ("edges", "depth")]
    names, picture = tmp_path / "names", tmp_path / "latencies.png"
    names.mkdir()
    for name in ("attention", "everything", "loha"):
        (names / f"{name}.safetensors").touch()
    options = [*controls, "--loras", str(names), "--lora-bound", "0", "--plot", str(picture), "--slo-factor", "50"]
    written = replayed(trace, tiny, *options)
    report, requests = written["report"], read_trace(trace).requests
    assert written["trace"]["digest"] == read_trace(trace).digest
    assert written["adapters"] == {"loras": 3, "controlnets": ["edges", "depth"]}
    assert report["counts"] == {"ok": len(requests), "refused": 0, "timed out": 0, "failed": 0}
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"]
    assert report["attainment"] == 1
    assert sum(report["lora_sources"].values()) == pytest.approx(1, abs=0.001)
    assert report["lora_sources"]["gpu"] > 0  # a trace repeats itself
    assert report["mean_patched_at_step"] == 0
    assert picture.stat().st_size > 5000


def test_requests_that_are_refused_are_told_apart(trace: Path, pipelines: dict[str, TinyServer]) -> None:
    report = replayed(trace, pipelines["sdxl"], "--timeout-ms", "1", "--slo-ms", "100")["report"]
    assert report["counts"]["refused"] == report["requests"]
    assert all("TIMEOUT_MS allows" in sentence for sentence in report["sentences"])
    assert report["latency_ms"] is None
    assert report["attainment"] == 0


def test_what_the_server_says_of_failures_is_counted(trace: Path, pipelines: dict[str, TinyServer]) -> None:
    control = f"--controlnet=nothing={Path(__file__).resolve().parents[2] / 'docs/edges.png'}"
    report = replayed(trace, pipelines["sdxl"], control, "--slo-ms", "100")["report"]
    assert report["counts"]["failed"] == report["requests"]
    (sentence,) = report["sentences"]
    assert 'CONTROLNETS names "nothing"; allowed:' in sentence
