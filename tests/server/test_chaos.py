"""Processes of a server are killed and stopped, tritonserver too: callers get their pictures, or are told to retry."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import checkpoints
import lora_files
from chaos import Plan, run
from chaos_requests import Offer
from file_server import wait_for
from serve_process import serving
from swiftdiffusion.clients import Client, GenerationRequest, GenerationResult, Progress, SwiftDiffusionError
from swiftdiffusion.export.repository.deployment import Deployment
from swiftdiffusion.export.repository.writing import write_pipelines
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kills, pytest.mark.xdist_group("pipelines")]  # after the tests of that server
PLAN = Plan(requests=24, kinds=6, every_s=1.0, kill_server=1, faults=4, settle_s=1.0)
DEPLOYMENT = """
[pipelines.sdxl]
checkpoint = "checkpoint"
unet_shards = 2
loras = "loras"
max_size = 128

[controlnets]
edges = { path = "edges" }
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A pipeline of two shards with LoRAs and a ControlNet."""
    checkpoint = checkpoints.sdxl(tmp_path / "checkpoint")
    checkpoints.controlnet(checkpoint, tmp_path / "edges", seed=0)
    (tmp_path / "loras").mkdir()
    for name, lora in lora_files.three(BaseModules.of(Checkpoint(checkpoint)).shapes).items():
        lora.save(tmp_path / "loras" / f"{name}.safetensors")
    (tmp_path / "deployment.toml").write_text(DEPLOYMENT, "utf-8")
    write_pipelines(Deployment.read(tmp_path / "deployment.toml").resolve(), tmp_path / "repository")
    return tmp_path / "repository"


def test_whoever_dies_no_picture_is_wrong_and_no_failure_final(repository: Path, tmp_path: Path) -> None:
    offer = Offer(("attention", "everything"), ("edges",), sides=(64, 128))
    report = run(repository, offer, PLAN, tmp_path / "log")
    assert report.not_allowed == []
    assert len(report.outcomes) >= PLAN.requests
    assert report.faults.made["tritonserver SIGKILL"] == 1
    assert report.faults.made.total() == PLAN.faults
    assert report.later.files.keys() <= report.before.files.keys() | {"waiting", "requests", "cancelled"}
    assert report.later.threads["tritonserver"] <= report.after.threads["tritonserver"]
    assert report.remains == []


def test_a_restart_loses_no_request_that_was_accepted(repository: Path, tmp_path: Path) -> None:
    """Callers ask on while SIGTERM drains the server: what began is answered, what comes later sent elsewhere."""
    requests: list[list[object]] = []  # what was told of each

    def call(client: Client, number: int) -> None:
        request = GenerationRequest("a cat", seed=number, steps=50)
        while True:
            requests.append(told := [])
            try:
                for event in client.stream(request) if number else [client.generate(request)]:
                    told.append(event)
            except SwiftDiffusionError as error:
                told.append(error)
                return

    def running() -> list[list[object]]:
        return [told for told in list(requests) if told and isinstance(told[-1], Progress)]

    with serving(repository, "--log-file", str(tmp_path / "log"), "--stop-timeout", "1") as served:
        served.ready_pid()
        with Client(served.grpc_url, model="sdxl", timeout=60) as client, ThreadPoolExecutor(4) as threads:
            callers = [threads.submit(call, client, number) for number in range(4)]
            wait_for(lambda: len(requests) > len(callers) and len(running()) >= 2, seconds=60)
            accepted = running()
            served.process.terminate()
            for caller in callers:
                caller.result()
        served.rest()
    assert served.process.returncode == 0
    assert [type(told[-1]) for told in accepted] == [GenerationResult] * len(accepted)
    refused = [told for told in requests if not isinstance(told[-1], GenerationResult)]
    assert len(refused) == len(callers)
    for told in refused:
        assert len(told) == 1, "refused after it had begun"
        assert "the server is about to stop and takes no new requests; retry elsewhere" in str(told[0])
