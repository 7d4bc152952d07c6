"""Real tritonservers on free loopback ports, each started once per session of tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import checkpoints
import lora_files
from swiftdiffusion.export.repository import write_repository
from swiftdiffusion.export.serving_options import ServedControlNet, ServingOptions
from swiftdiffusion.python_backends.checkpoint import Checkpoint
from swiftdiffusion.python_backends.lora.modules import BaseModules
from swiftdiffusion.python_backends.server import TritonServer

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTROLNETS = ("edges", "depth", "pose")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def server() -> Iterator[TritonServer]:
    """The committed repository: the demo family as the model `sdxl`."""
    with TritonServer(ROOT / "model_repository") as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: TritonServer) -> str:
    """Of the demo server, over either protocol."""
    return server.grpc_url if request.param == "grpc" else server.http_url


def write_loras(checkpoint: Checkpoint, directory: Path) -> None:
    """A catalogue of three LoRAs."""
    directory.mkdir()
    for name, lora in lora_files.three(BaseModules.of(checkpoint).shapes).items():
        lora.save(directory / f"{name}.safetensors")


class TinyServer:
    """A server of a tiny random-weight checkpoint, with that checkpoint at hand for diffusers."""

    def __init__(self, running: TritonServer, checkpoint: Path, model: str, loras: Path) -> None:
        self.running, self.checkpoint, self.model, self.loras = running, checkpoint, model, loras
        self.grpc_url, self.http_url, self.metrics_url = running.grpc_url, running.http_url, running.metrics_url


@pytest.fixture(scope="session", params=["sdxl", "sd15"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    """A tiny checkpoint of either family, served by what the exporter writes for it."""
    directory = tmp_path_factory.mktemp(request.param)
    checkpoint = Checkpoint(getattr(checkpoints, request.param)(directory / "checkpoint"))
    controlnets = tuple(
        ServedControlNet(name, checkpoints.controlnet(checkpoint.path, directory / name, seed))
        for seed, name in enumerate(CONTROLNETS)
    )
    options = ServingOptions(
        unet_shards=2,
        unet_gpus=(),
        threads=1,
        dtype="float32",
        max_batch_size=8,
        steps=4,
        guidance_scale=5.0,
        max_size=128,
        loras=directory / "loras",
        controlnets=controlnets,
    )
    write_loras(checkpoint, directory / "loras")
    write_repository(checkpoint, directory / "repository", options)
    with TritonServer(directory / "repository") as running:
        yield TinyServer(running, checkpoint.path, checkpoint.family, directory / "loras")
