"""A real tritonserver with its models on a GPU, of SDXL's widths and random weights, against diffusers' pipelines.

UNet shard, ControlNet, text encoders and VAE share the GPU; diffusers draws before the server starts, and leaves it.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("tritonclient.grpc", reason="needs Triton's client")

import gpu_networks
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from lora_workloads import Files
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import checkpoints
from swiftdiffusion.export.repository.deployment import Deployment
from swiftdiffusion.export.repository.writing import write_pipelines
from swiftdiffusion.python_backends.launcher import ServerOptions, TritonServer
from swiftdiffusion.python_backends.launcher.binary import find_server_binary
from swiftdiffusion.python_backends.launcher.errors import ServerBinaryNotFoundError
from swiftdiffusion.python_backends.lora.files.modules import adaptable_weights
from wire import Picture, generate

TOLERANCE = 0.5
"""Mean absolute difference of pixels, in units of 1/255: seven times what half precision makes of such a picture at a
fifth of these widths, and a fourth of what another prompt does."""

FIELDS: dict[str, Any] = {"PROMPT": "a red cat", "SEED": 7, "STEPS": 8, "GUIDANCE_SCALE": 5.0}
LORA_SCALE, CONTROLNET_SCALE = 2.0, 0.8
WITH_LORA = {"LORAS": json.dumps([{"name": "lora0", "scale": LORA_SCALE}]), "LORA_BOUND": 0}


def has_server() -> bool:
    try:
        find_server_binary()
    except ServerBinaryNotFoundError:
        return False
    return True


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not has_server(), reason="needs a tritonserver"),
]


@dataclass(frozen=True)
class Place:
    """Where the networks are and of what size: SDXL's, or a fifth of its widths."""

    device: torch.device
    real: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else torch.float16

    @property
    def side(self) -> int:
        """Of a picture, in pixels."""
        return 1024 if self.real else 128

    @property
    def control(self) -> np.ndarray:
        """A ControlNet's picture."""
        return np.random.default_rng(0).integers(0, 256, (self.side, self.side, 3), np.uint8)


@dataclass(frozen=True)
class Served:
    """A server, and what diffusers drew of what it serves."""

    server: TritonServer
    place: Place
    wanted: dict[str, np.ndarray]

    def draw(self, **fields: Any) -> Picture:
        return generate(self.server, "sdxl", **FIELDS, **fields)

    def with_controlnet(self) -> dict[str, Any]:
        """Fields of a request."""
        entry = {"name": "edges", "scale": CONTROLNET_SCALE}
        return {"CONTROLNETS": json.dumps([entry]), "CONTROL_IMAGES": self.place.control[None, None]}


@pytest.fixture(scope="module")
def place() -> Place:
    return Place(torch.device("cuda", 0), real=True)


@pytest.fixture(scope="module")
def served(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("serving")
    write_checkpoint(place, directory)
    wanted = drawn_by_diffusers(place, directory)
    free(place)
    options: dict[str, Any] = {"checkpoint": directory / "checkpoint", "loras": directory / "loras", "unet_shards": 1}
    at = ""
    if place.device.type == "cuda":
        options["unet_gpus"], at = "0", "@0"
    deployment = Deployment.from_options(None, options, [f"edges={directory / 'controlnet'}{at}"])
    write_pipelines(deployment.resolve(), directory / "repository")
    with TritonServer(directory / "repository", options=ServerOptions(stop_timeout_seconds=1.0)) as server:
        yield Served(server, place, wanted)


def write_checkpoint(place: Place, directory: Path) -> None:
    """A checkpoint, a ControlNet and a catalogue of one LoRA."""
    words = checkpoints.tokenizer(directory / "words")
    unet = gpu_networks.unet(place.real, place.device, place.dtype)
    gpu_networks.controlnet(unet, place.device, place.dtype).save_pretrained(directory / "controlnet")
    (directory / "loras").mkdir()
    Files(directory / "loras", unet, (16,)).make()
    width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    first, second = (
        kind(checkpoints.text_config(words, size, size, 2)).to(place.dtype)
        for kind, size in (
            (CLIPTextModel, unet.config.cross_attention_dim - width),
            (CLIPTextModelWithProjection, width),
        )
    )
    StableDiffusionXLPipeline(
        vae=gpu_networks.vae(place.real, place.device, place.dtype),
        unet=unet,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=words,
        tokenizer_2=words,
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
        ),
    ).save_pretrained(directory / "checkpoint", safe_serialization=True)


@torch.no_grad()
def drawn_by_diffusers(place: Place, directory: Path) -> dict[str, np.ndarray]:
    """Pictures [H, W, 3] of the request alone, with the ControlNet, and with the LoRA added to the weights."""
    pipeline = DiffusionPipeline.from_pretrained(directory / "checkpoint", dtype=place.dtype).to(place.device)
    network = ControlNetModel.from_pretrained(directory / "controlnet", dtype=place.dtype).to(place.device)
    controlled = StableDiffusionXLControlNetPipeline(**pipeline.components, controlnet=network)
    # in half precision a generator gives other numbers
    noise = torch.randn(1, 4, place.side // 8, place.side // 8, generator=torch.Generator().manual_seed(FIELDS["SEED"]))

    def draw(of: Any, **options: Any) -> np.ndarray:
        of.set_progress_bar_config(disable=True)
        steps, guidance = FIELDS["STEPS"], FIELDS["GUIDANCE_SCALE"]
        options |= {"num_inference_steps": steps, "guidance_scale": guidance, "latents": noise.to(place.dtype)}
        return np.asarray(of(FIELDS["PROMPT"], **options).images[0])

    control = {"image": Image.fromarray(place.control), "controlnet_conditioning_scale": CONTROLNET_SCALE}
    pictures = {"bare": draw(pipeline), "controlled": draw(controlled, **control)}
    factors = load_file(directory / "loras/lora0.safetensors", str(place.device))
    for name, weight in adaptable_weights(pipeline.unet).items():
        if f"unet.{name}.lora_A.weight" in factors:
            down, up = (factors[f"unet.{name}.lora_{factor}.weight"].float() for factor in "AB")
            weight.copy_(weight.float() + LORA_SCALE * (up @ down).reshape(weight.shape))
    return pictures | {"lora": draw(pipeline)}


def free(place: Place) -> None:
    """Leaves the GPU to the server."""
    gc.collect()
    if place.device.type == "cuda":
        torch.cuda.empty_cache()


def test_a_picture_is_that_of_diffusers_each_time(served: Served) -> None:
    first, second = served.draw(), served.draw()
    assert first.distance(served.wanted["bare"]) <= TOLERANCE
    assert np.array_equal(first.image, second.image)


def test_a_controlnet_on_the_same_gpu(served: Served) -> None:
    first, second = (served.draw(**served.with_controlnet()) for _ in range(2))
    assert first.distance(served.wanted["controlled"]) <= TOLERANCE
    assert np.array_equal(first.image, second.image)


def test_a_lora_there_and_back_to_the_bit(served: Served) -> None:
    before, patched, after = served.draw(), served.draw(**WITH_LORA), served.draw()
    assert patched.distance(served.wanted["lora"]) <= TOLERANCE
    assert np.array_equal(before.image, after.image)


def test_a_lora_with_a_controlnet_changes_both_ways(served: Served) -> None:
    both = served.draw(**WITH_LORA, **served.with_controlnet())
    for wanted in served.wanted.values():
        assert both.distance(wanted) > TOLERANCE


def test_the_oracle_tells_them_apart(served: Served) -> None:
    """Otherwise near pictures would prove nothing."""
    bare = Picture(served.wanted["bare"], {})
    for name in ("controlled", "lora"):
        assert bare.distance(served.wanted[name]) > 3 * TOLERANCE
