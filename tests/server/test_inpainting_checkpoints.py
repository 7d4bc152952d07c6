"""Checkpoints that only inpaint: their UNet takes mask and masked picture beside the latents, in diffusers' way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from tritonclient.utils import InferenceServerException

import checkpoints
import lora_files
from edits import TOLERANCE, box, diffused, oracle, patched, picture
from swiftdiffusion.export.repository.deployment import Deployment
from swiftdiffusion.export.repository.writing import write_pipelines
from swiftdiffusion.python_backends.launcher import ServerOptions, TritonServer
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from wire import generate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEIGHT, WIDTH = 32, 48
FIELDS: dict[str, Any] = {
    "PROMPT": "a cat",
    "NEGATIVE_PROMPT": "blurry",
    "SEED": 3,
    "STEPS": 10,
    "GUIDANCE_SCALE": 5.0,
    "STRENGTH": 0.7,
    "INIT_IMAGE": picture(HEIGHT, WIDTH),
    "MASK_IMAGE": box(HEIGHT, WIDTH, 9, 5, 27, 31),
}
DEPLOYMENT = """
[pipelines.sdxl]
checkpoint = "sdxl/checkpoint"
unet_shards = 2
loras = "sdxl/loras"
max_size = 64

[pipelines.sd15]
checkpoint = "sd15/checkpoint"
unet_shards = 1
max_size = 64

[controlnets]
edges = { path = "sdxl/edges" }
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TritonServer, Path]]:
    """Both families, with a ControlNet that was made for a UNet which does not inpaint, and a directory of it all."""
    base = tmp_path_factory.mktemp("inpainting")
    for family in ("sdxl", "sd15"):
        getattr(checkpoints, family)(base / family / "checkpoint", depth=2, inpaints=True)
    checkpoints.controlnet(checkpoints.sdxl(base / "plain", depth=2), base / "sdxl/edges", 1)
    (base / "sdxl/loras").mkdir()
    kinds = lora_files.three(BaseModules.of(Checkpoint(base / "sdxl/checkpoint")).shapes)
    kinds["attention"].save(base / "sdxl/loras/attention.safetensors")
    (base / "deployment.toml").write_text(DEPLOYMENT, "utf-8")
    write_pipelines(Deployment.read(base / "deployment.toml").resolve(), base / "repository")
    with ExitStack() as stop:
        running = TritonServer(base / "repository", options=ServerOptions(stop_timeout_seconds=1.0))
        stop.enter_context(running)
        yield running, base


@pytest.mark.parametrize("strength", [0.3, 0.7, 0.9999, 1.0])
@pytest.mark.parametrize("scheduler", ["euler", "euler_a", "ddim", "dpmpp_2m", "lcm"])
@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_pictures_are_those_of_diffusers(
    served: tuple[TritonServer, Path], family: str, scheduler: str, strength: float
) -> None:
    server, base = served
    fields = FIELDS | {"SCHEDULER": scheduler, "STRENGTH": strength}
    made = generate(server, family, **fields)
    assert made.distance(diffused(base / family / "checkpoint", **fields)) <= TOLERANCE
    assert (made.info["kind"], made.info["steps_kept"]) == ("inpaint", int(10 * strength))


def test_in_company(served: tuple[TritonServer, Path]) -> None:
    server, base = served
    others = [
        {"SEED": 4},
        {"STRENGTH": 1.0},
        {"MASK_IMAGE": box(HEIGHT, WIDTH, 0, 0, 8, 9)},
        {"INIT_IMAGE": picture(40, 32, 5), "MASK_IMAGE": box(40, 32, 3, 3, 30, 30)},
    ]
    requests = [FIELDS | {"STEPS": 30} | other for other in others]
    with ThreadPoolExecutor(len(requests)) as threads:
        together = list(threads.map(lambda fields: generate(server, "sdxl", **fields), requests))
    for made, fields in zip(together, requests, strict=True):
        assert made.distance(diffused(base / "sdxl/checkpoint", **fields)) <= TOLERANCE


def test_with_a_lora_and_a_controlnet_that_takes_latents_alone(served: tuple[TritonServer, Path]) -> None:
    from diffusers import ControlNetModel, StableDiffusionXLControlNetInpaintPipeline

    server, base = served
    checkpoint = base / "sdxl/checkpoint"
    inpainting = oracle(checkpoint, None, True)
    network = ControlNetModel.from_pretrained(base / "sdxl/edges")
    pipeline = StableDiffusionXLControlNetInpaintPipeline.from_pipe(inpainting, controlnet=network)
    pipeline.set_progress_bar_config(disable=True)
    deltas = lora_files.three(BaseModules.of(Checkpoint(checkpoint)).shapes)["attention"].deltas
    control = picture(HEIGHT, WIDTH, 9)
    options = {"controlnet_conditioning_scale": 0.8, "control_image": Image.fromarray(control[0])}
    with torch.no_grad(), patched(inpainting, deltas):
        wanted = diffused(checkpoint, pipeline, **FIELDS, options=options)
    more = {"CONTROLNETS": '[{"name": "edges", "scale": 0.8}]', "CONTROL_IMAGES": control[None]}
    made = generate(server, "sdxl", **FIELDS, **more, LORAS='[{"name": "attention"}]', LORA_BOUND=0)
    assert made.distance(wanted) <= TOLERANCE
    assert made.distance(generate(server, "sdxl", **FIELDS)) > TOLERANCE


@pytest.mark.parametrize("missing", ["MASK_IMAGE", "INIT_IMAGE"])
def test_it_does_nothing_else(served: tuple[TritonServer, Path], missing: str) -> None:
    server, _ = served
    absent = {"INIT_IMAGE": ("INIT_IMAGE", "MASK_IMAGE", "STRENGTH"), "MASK_IMAGE": ("MASK_IMAGE",)}[missing]
    fields = {name: value for name, value in FIELDS.items() if name not in absent}
    with pytest.raises(InferenceServerException, match="is missing; required: this checkpoint only inpaints"):
        generate(server, "sdxl", **fields)


def test_that_is_said_in_its_description(served: tuple[TritonServer, Path]) -> None:
    from swiftdiffusion.clients.client.client import Client

    with Client(served[0].grpc_url, model="sdxl") as client:
        told = client.pipelines()
    assert told["sdxl"].only_inpaints and told["sd15"].only_inpaints
