"""Callers that go, servers that are not there, and the gateway's own end."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import InternalServerError
from typer.testing import CliRunner

from file_server import wait_for
from gateways import Gateway, GatewayThread, gateway_process, gateway_thread
from swiftdiffusion.clients.cli import app
from swiftdiffusion.clients.gateway.settings import GatewaySettings
from swiftdiffusion.python_backends.launcher import TritonServer
from swiftdiffusion.python_backends.launcher.ports import free_ports
from wire import PROMPT, latest_metrics, metrics

STEPS = 200
LONG: dict[str, Any] = {"prompt": PROMPT, "size": "128x128", "seed": 7, "num_inference_steps": STEPS}
SLOW = {**LONG, "size": "512x512"}
"""Of whose steps few are made in the time in which a server tells of them."""
SHORT = {**LONG, "num_inference_steps": 4}
CANCELLED = 'swiftdiffusion_requests_finished_total{outcome="cancelled",pipeline="sdxl"}'


def steps(told: dict[str, float]) -> float:
    """That were denoised, of all requests."""
    return sum(value for name, value in told.items() if name.startswith("swiftdiffusion_step_seconds_count"))


def running(told: dict[str, float]) -> float:
    """Requests that denoise."""
    return sum(value for name, value in told.items() if name.startswith("swiftdiffusion_requests_running{"))


def begun(gateway: Gateway, server: TritonServer, before: dict[str, float]) -> None:
    """Waits until a picture is being made, in which there have been steps."""
    wait_for(lambda: gateway.runs() == 1, 30)
    wait_for(lambda: steps(latest_metrics(server)) >= steps(before) + 2, 30)


def ended_early(gateway: Gateway, server: TritonServer, before: dict[str, float], most: int, count: int = 1) -> None:
    """Waits until as many pictures are cancelled, on both sides, after fewer than `most` steps; none follows."""
    wait_for(lambda: latest_metrics(server)[CANCELLED] == before[CANCELLED] + count, 20)
    wait_for(lambda: gateway.runs() == 0, 10)
    wait_for(lambda: running(latest_metrics(server)) == 0, 10)  # the step that they were in has ended
    after = metrics(server)
    assert after[CANCELLED] == before[CANCELLED] + count
    assert steps(after) - steps(before) < most
    time.sleep(0.3)
    assert steps(metrics(server)) == steps(after), "something goes on"


def test_who_closes_a_stream_has_its_picture_cancelled(gateway: GatewayThread, server: TritonServer) -> None:
    before = metrics(server)
    body = {**SLOW, "stream": True, "progress": True}
    with httpx2.stream("POST", f"{gateway.url}/v1/images/generations", json=body, timeout=60) as answer:
        lines = answer.iter_lines()  # which closes the connection when nobody has it any more
        assert next(lines) == "event: image_generation.progress"
        assert gateway.runs() == 1
    ended_early(gateway, server, before, 20)


def test_who_closes_a_silent_stream_has_its_picture_cancelled(gateway: GatewayThread, server: TritonServer) -> None:
    """Nothing is sent to it before its picture is there: that it has gone is noticed all the same."""
    before = metrics(server)
    with httpx2.stream("POST", f"{gateway.url}/v1/images/generations", json={**SLOW, "stream": True}, timeout=60):
        begun(gateway, server, before)
    ended_early(gateway, server, before, 20)


def test_who_does_not_wait_for_its_answer_has_its_pictures_cancelled(
    gateway: GatewayThread, server: TritonServer
) -> None:
    before = metrics(server)
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{gateway.url}/v1/images/generations", json={**SLOW, "n": 2}, timeout=2)
    ended_early(gateway, server, before, STEPS // 2, count=2)
    assert gateway.metrics()['swiftdiffusion_gateway_pictures_total{outcome="cancelled",pipeline="sdxl"}'] >= 2


def test_health_is_of_the_servers_behind(server: TritonServer) -> None:
    nobody = f"grpc://127.0.0.1:{free_ports(1)[0]}"
    with gateway_thread(GatewaySettings(servers=(nobody,), retries=0)) as gateway, gateway.openai() as client:
        answer = httpx2.get(f"{gateway.url}/health")
        assert (answer.status_code, answer.json()) == (503, {"ready": False, "servers_ready": 0})
        with pytest.raises(InternalServerError, match="no server answers; try again later") as caught:
            client.images.generate(prompt=PROMPT)
        assert (caught.value.status_code, caught.value.code) == (503, "server_unavailable")
        assert caught.value.response.headers["retry-after"] == "5"
        assert gateway.runs() == 0
    with gateway_thread(GatewaySettings(servers=(nobody, server.grpc_url))) as gateway:
        answer = httpx2.get(f"{gateway.url}/health")
        assert (answer.status_code, answer.json()) == (200, {"ready": True, "servers_ready": 1})


def test_a_server_that_is_not_there_keeps_no_picture_from_coming(server: TritonServer, tmp_path: Path) -> None:
    nobody = f"grpc://127.0.0.1:{free_ports(1)[0]}"
    with (
        gateway_process(tmp_path / "log", "--server", nobody, "--server", server.grpc_url) as gateway,
        gateway.openai() as client,
    ):
        answers = [client.images.generate(prompt=PROMPT, extra_body=SHORT) for _ in range(3)]
        assert all(answer.data and answer.data[0].b64_json for answer in answers)
        told = gateway.metrics()
        assert told['swiftdiffusion_gateway_pictures_total{outcome="picture",pipeline="sdxl"}'] == 3


def test_metrics_count_requests_and_pictures(server: TritonServer) -> None:
    with gateway_thread(GatewaySettings(servers=(server.grpc_url,))) as gateway:
        for body in (SHORT, {**SHORT, "stream": True}, {**SHORT, "scheduler": "nope"}):
            httpx2.post(f"{gateway.url}/v1/images/generations", json=body, timeout=60)
        httpx2.get(f"{gateway.url}/page/index.html")
        told = gateway.metrics()
        for name in (
            'requests_total{method="POST",route="/v1/images/generations",status="200"}',
            'requests_total{method="POST",route="/v1/images/generations",status="400"}',
            'pictures_total{outcome="picture",pipeline="sdxl"}',
            'pictures_total{outcome="invalid",pipeline="sdxl"}',
        ):
            assert told[f"swiftdiffusion_gateway_{name}"] == (2 if "200" in name or "picture" in name[20:] else 1), name
        assert told['swiftdiffusion_gateway_request_seconds_count{route="/v1/images/generations"}'] == 3


@pytest.mark.parametrize("stream", [False, True])
def test_at_its_end_the_gateway_finishes_what_it_has_begun(server: TritonServer, tmp_path: Path, stream: bool) -> None:
    before, some = metrics(server), {"num_inference_steps": 60, "size": "256x256"}
    with gateway_process(tmp_path / "log", "--server", server.grpc_url) as gateway, ThreadPoolExecutor(1) as thread:
        picture = thread.submit(
            httpx2.post, f"{gateway.url}/v1/images/generations", json={**LONG, **some, "stream": stream}, timeout=120
        )
        begun(gateway, server, before)
        gateway.process.send_signal(signal.SIGTERM)
        answer = picture.result(120)
        assert answer.status_code == 200
        assert "b64_json" in answer.text
        assert ("event: image_generation.completed" in answer.text) == stream
        assert gateway.process.wait(30) == 0
        assert "Traceback" not in gateway.log


@pytest.mark.parametrize("stream", [False, True])
def test_who_takes_too_long_at_its_end_is_told_and_cancelled(
    server: TritonServer, tmp_path: Path, stream: bool
) -> None:
    before = metrics(server)
    arguments = ("--server", server.grpc_url, "--drain-seconds", "0")
    body = {**SLOW, "stream": stream, "progress": stream}
    with gateway_process(tmp_path / "log", *arguments) as gateway, ThreadPoolExecutor(1) as thread:
        picture = thread.submit(httpx2.post, f"{gateway.url}/v1/images/generations", json=body, timeout=120)
        begun(gateway, server, before)
        gateway.process.send_signal(signal.SIGTERM)
        answer = picture.result(30)
        assert "the gateway stops; try again later" in answer.text
        if stream:
            assert answer.text.rstrip().splitlines()[-2] == "event: error"
        else:
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert gateway.process.wait(30) == 0
        assert "Traceback" not in gateway.log
    wait_for(lambda: latest_metrics(server)[CANCELLED] == before[CANCELLED] + 1, 20)


def test_a_file_of_keys_that_is_none_ends_the_command(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('"sk-alice-0123456789" = "alice"')
    result = CliRunner().invoke(app, ["gateway", "--keys", str(keys), "--port", "0"])
    assert result.exit_code == 2
    assert "entry 1" in result.output
    assert "sk-alice" not in result.output
