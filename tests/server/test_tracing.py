"""Spans of a request, as an OpenTelemetry collector has them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import checkpoints
import lora_files
from file_server import wait_for
from swiftdiffusion.export.repository.deployment import Deployment
from swiftdiffusion.export.repository.writing import write_pipelines
from swiftdiffusion.python_backends.launcher import ServerOptions, TritonServer
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from wire import generate


class Collector:
    """Takes OTLP over HTTP as JSON, which is what Triton sends."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                for resource in body["resourceSpans"]:
                    spans.extend(span for scope in resource["scopeSpans"] for span in scope["spans"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def callers(self, name: str) -> set[str]:
        """Parents of the spans of a model."""
        names = {span["spanId"]: span["name"] for span in self.spans}
        return {names[span["parentSpanId"]] for span in self.spans if span["name"] == name}


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.server.shutdown()


def test_calls_between_models_are_spans_of_the_request(tmp_path: Path, collector: Collector) -> None:
    checkpoint = checkpoints.sdxl(tmp_path / "checkpoint")
    (tmp_path / "loras").mkdir()
    lora = lora_files.three(BaseModules.of(Checkpoint(checkpoint)).shapes)["attention"]
    lora.save(tmp_path / "loras/attention.safetensors")
    options = {"checkpoint": checkpoint, "loras": tmp_path / "loras", "steps": 4, "unet_shards": 1}
    write_pipelines(Deployment.from_options(None, options, []).resolve(), tmp_path / "repository")
    serving = ServerOptions(stop_timeout_seconds=1.0, trace_endpoint=collector.url)
    with TritonServer(tmp_path / "repository", options=serving) as server:
        for protocol in ("grpc", "http"):
            generate(server, "sdxl", protocol, PROMPT="a cat", LORAS='[{"name": "attention"}]')
        wait_for(lambda: sum(span["name"] == "InferRequest" for span in collector.spans) == 2, seconds=30.0)
    for model in ("preprocess", "text_encoder", "denoiser", "vae_decoder"):
        assert collector.callers(model) == {"sdxl"}
    assert collector.callers("sdxl") == {"InferRequest"}
    assert collector.callers("lora_store") == {"preprocess"}
    assert collector.callers("unet_shard0") == {"preprocess", "denoiser"}
    assert len({span["traceId"] for span in collector.spans}) == 2
