"""Real tritonservers on free loopback ports, each started once per session of tests."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

import checkpoints
import lora_files
from lora_kinds import eight_kinds
from supervised import SUPERVISED
from swiftdiffusion.clients.gateway.settings import GatewaySettings
from swiftdiffusion.export.repository.deployment import Deployment
from swiftdiffusion.export.repository.writing import write_pipelines
from swiftdiffusion.python_backends.launcher import ServerOptions, TritonServer
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from throwaway import broken_repository, fine_repository

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateways import GatewayThread
    from lora_files import MadeLora

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = ServerOptions(stop_timeout_seconds=1.0)
"""At the end of the session nothing is in flight, and what is left of the processes is killed."""


@pytest.hookimpl(trylast=True)  # after pytest has put those of one parameter together
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that end processes of a server come last: what they break, if they do, is nobody else's failure.

    They run again if they failed and tritonserver aborted meanwhile.
    """
    items.sort(key=lambda item: item.get_closest_marker("kills") is not None)
    for item in items:
        if item.get_closest_marker("kills") and not item.config.option.usepdb:
            item.add_marker(pytest.mark.flaky(reruns=2, condition=SUPERVISED.aborted))


def pytest_runtest_setup() -> None:
    """Servers that have ended are there again."""
    SUPERVISED.begin_test()


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Only tests that end processes may end a server, and what they ended is there again for the next."""
    if item.get_closest_marker("kills"):
        SUPERVISED.wait_whole()
    else:
        assert not SUPERVISED.aborted(), "tritonserver aborted"


@pytest.fixture
def fine(tmp_path: Path) -> Path:
    """A repository of one small model."""
    return fine_repository(tmp_path / "fine")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A repository of which a model fails to load."""
    return broken_repository(tmp_path / "broken")


@pytest.fixture(scope="session")
def server() -> Iterator[TritonServer]:
    """The committed repository: the demo family as the model `sdxl`."""
    with TritonServer(ROOT / "model_repository", options=AT_ONCE) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(server: TritonServer) -> Iterator[GatewayThread]:
    """A gateway in front of the demo server, for everybody."""
    from gateways import gateway_thread  # most tests here do without OpenAI's client and a web server

    with gateway_thread(GatewaySettings(servers=(server.grpc_url,))) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: TritonServer) -> str:
    """Of the demo server, over either protocol."""
    return server.grpc_url if request.param == "grpc" else server.http_url


DEPLOYMENT = """
[pipelines.sdxl]
checkpoint = "sdxl/checkpoint"
unet_shards = 3
loras = "sdxl/loras"
steps = 4
guidance_scale = 5.0
max_size = 256
controlnet_timeout = 20.0

[pipelines.sd15]
checkpoint = "sd15/checkpoint"
loras = "sd15/loras"
steps = 4
guidance_scale = 5.0
max_size = 256

[pipelines.other]
checkpoint = "other/checkpoint"
unet_shards = 1
loras = "other/loras"
controlnet_timeout = 5.0

[controlnets]
edges = {{ path = "sdxl/edges" }}
depth = {{ path = "sdxl/depth" }}
pose = {{ path = "sdxl/pose/diffusion_pytorch_model.safetensors" }}
union = {{ path = "sdxl/union" }}
canny = {{ path = "sdxl/canny", url = "{elsewhere}" }}
sd15-edges = {{ path = "sd15/edges" }}
sd15-depth = {{ path = "sd15/depth" }}
sd15-pose = {{ path = "sd15/pose/diffusion_pytorch_model.safetensors" }}
sd15-shuffle = {{ path = "sd15/shuffle" }}
"""


@dataclass(frozen=True)
class TinyServer:
    """One pipeline of the server of tiny random-weight checkpoints, with that checkpoint at hand for diffusers.

    Attributes:
        running: The server.
        elsewhere: Another, which has the ControlNet `canny` and nothing else.
        model: The public one.
        directory: Of the checkpoint, the ControlNets by name, and the LoRA catalogue.
    """

    running: TritonServer
    elsewhere: TritonServer
    model: str
    directory: Path

    @property
    def grpc_url(self) -> str:
        return self.running.grpc_url

    @property
    def http_url(self) -> str:
        return self.running.http_url

    @property
    def metrics_url(self) -> str:
        return self.running.metrics_url

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoint"

    @property
    def loras(self) -> Path:
        return self.directory / "loras"

    def inner(self, model: str) -> str:
        """An inner model's name."""
        return f"{self.model}_{model}"

    def controlnet(self, name: str) -> str:
        """What requests call a ControlNet; those of SDXL have the plain names."""
        return f"sd15-{name}" if self.model == "sd15" else name


def write_loras(loras: Mapping[str, MadeLora], directory: Path) -> None:
    """A catalogue of LoRAs."""
    directory.mkdir()
    for name, lora in loras.items():
        lora.save(directory / f"{name}.safetensors")


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, TinyServer]]:
    """One server with all there is: both families, and a second SDXL pipeline of one shard with another UNet and LoRAs.

    SDXL has three shards, SD 1.5 two. The SDXL pipelines share text encoders and ControlNets: `edges` and `depth`;
    `pose`, a single file; `union`; and `canny`, which is on a server of its own. SD 1.5 has the first three as well,
    and `shuffle`, which pools, and the textual inversion embedding `toy`.
    """
    directory = tmp_path_factory.mktemp("pipelines")
    made = {
        "sdxl": checkpoints.sdxl(directory / "sdxl/checkpoint"),
        "sd15": checkpoints.sd15(directory / "sd15/checkpoint"),
        "other": checkpoints.sdxl(directory / "other/checkpoint", unet_seed=5),
    }
    for family in ("sdxl", "sd15"):
        for seed, name in enumerate(("edges", "depth", "pose")):
            checkpoints.controlnet(made[family], directory / family / name, seed)
        write_loras(lora_files.three(BaseModules.of(Checkpoint(made[family])).shapes), directory / family / "loras")
    write_loras(eight_kinds(Checkpoint(made["other"])), directory / "other/loras")
    save_file({"emb_params": torch.randn(2, 16)}, directory / "sd15/loras/toy.safetensors")
    checkpoints.controlnet_union(made["sdxl"], directory / "sdxl/union", 3)
    canny = checkpoints.controlnet(made["sdxl"], directory / "sdxl/canny", 7)
    checkpoints.controlnet(made["sd15"], directory / "sd15/shuffle", 4, global_pool_conditions=True)

    alone = Deployment.from_options(None, {"checkpoint": made["sdxl"]}, [f"canny={canny}"])
    write_pipelines(alone.resolve(), directory / "elsewhere", only_controlnets=True)
    elsewhere = TritonServer(directory / "elsewhere", options=AT_ONCE)
    running = TritonServer(directory / "repository", options=AT_ONCE)
    with ExitStack() as stop:
        elsewhere.start()
        stop.callback(elsewhere.stop)
        (directory / "deployment.toml").write_text(DEPLOYMENT.format(elsewhere=elsewhere.grpc_url), "utf-8")
        write_pipelines(Deployment.read(directory / "deployment.toml").resolve(), directory / "repository")
        running.start()
        stop.callback(running.stop)
        for each in (elsewhere, running):
            stop.enter_context(SUPERVISED.keep(each))
        yield {name: TinyServer(running, elsewhere, name, directory / name) for name in made}


@pytest.fixture(scope="session", params=["sdxl", "sd15"])
def tiny(request: pytest.FixtureRequest, pipelines: dict[str, TinyServer]) -> TinyServer:
    """The pipeline of either family."""
    return pipelines[request.param]
