"""Real tritonservers on free loopback ports, each started once per session of tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import checkpoints
import lora_files
from swiftdiffusion.export.repository.deployment import Deployment
from swiftdiffusion.export.repository.writing import write_pipelines
from swiftdiffusion.python_backends.launcher import TritonServer
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@dataclass(frozen=True)
class Neighbour:
    """A second server: two pipelines, `wide` of three shards and `other`, with ControlNets and text encoders in common.

    Attributes:
        running: The server.
        wide: The checkpoint of the server `tiny` for SDXL.
        other: One with another UNet.
        canny: The ControlNet that it has.
    """

    running: TritonServer
    wide: Path
    other: Path
    canny: Path

    @property
    def grpc_url(self) -> str:
        return self.running.grpc_url


@pytest.fixture(scope="session")
def neighbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbour]:
    directory = tmp_path_factory.mktemp("neighbour")
    wide, other = checkpoints.sdxl(directory / "wide"), checkpoints.sdxl(directory / "other", unet_seed=5)
    canny = checkpoints.controlnet(wide, directory / "canny", 7)
    (directory / "deployment.toml").write_text(DEPLOYMENT, "utf-8")
    write_pipelines(Deployment.read(directory / "deployment.toml").resolve(), directory / "repository")
    with TritonServer(directory / "repository") as running:
        yield Neighbour(running, wide, other, canny)


DEPLOYMENT = """
[pipelines.wide]
checkpoint = "wide"
unet_shards = 3

[pipelines.other]
checkpoint = "other"
unet_shards = 1
controlnet_timeout = 5.0

[controlnets.canny]
path = "canny"
"""


@pytest.fixture(scope="session", params=["sdxl", "sd15"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    """A tiny checkpoint of either family, served by what the exporter writes for it.

    Its ControlNets: `edges` and `depth`; `pose`, a single file; for SDXL `union`, and `canny`, which the neighbour has;
    for SD 1.5 `shuffle`, which pools.
    """
    directory = tmp_path_factory.mktemp(request.param)
    checkpoint = Checkpoint(getattr(checkpoints, request.param)(directory / "checkpoint"))
    networks = {
        name: str(checkpoints.controlnet(checkpoint.path, directory / name, seed))
        for seed, name in enumerate(("edges", "depth", "pose"))
    }
    networks["pose"] += "/diffusion_pytorch_model.safetensors"
    if request.param == "sdxl":
        neighbour = request.getfixturevalue("neighbour")
        networks["union"] = str(checkpoints.controlnet_union(checkpoint.path, directory / "union", 3))
        networks["canny"] = f"{neighbour.canny}@{neighbour.grpc_url}"
    else:
        shuffle = checkpoints.controlnet(checkpoint.path, directory / "shuffle", 4, global_pool_conditions=True)
        networks["shuffle"] = str(shuffle)
    write_loras(checkpoint, directory / "loras")
    options = {"steps": 4, "guidance_scale": 5.0, "max_size": 128, "loras": directory / "loras"}
    placed = [f"{name}={place}" for name, place in networks.items()]
    deployment = Deployment.from_options(None, {"checkpoint": checkpoint.path, **options}, placed)
    write_pipelines(deployment.resolve(), directory / "repository")
    with TritonServer(directory / "repository") as running:
        yield TinyServer(running, checkpoint.path, checkpoint.family, directory / "loras")
