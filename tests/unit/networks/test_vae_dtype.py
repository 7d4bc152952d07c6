"""The autoencoder computes in what diffusers' own pipelines have it compute in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)

import checkpoints
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

HALF = (torch.float16, torch.bfloat16)
PIPELINES = {
    "sd15": (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline),
    "sdxl": (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline),
}


@pytest.fixture(scope="module", params=PIPELINES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return getattr(checkpoints, request.param)(tmp_path_factory.mktemp("dtypes") / request.param, depth=2)


def computed_in(part: torch.nn.Module, pipeline: DiffusionPipeline, **arguments: object) -> torch.dtype:
    """What a part of the autoencoder is given when the pipeline runs."""
    seen: list[torch.dtype] = []
    hook = part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a circle", num_inference_steps=4, output_type="pt", **arguments)
    hook.remove()
    (dtype,) = set(seen)
    return dtype


@pytest.mark.parametrize("says", [None, True, False])
def test_as_in_diffusers(path: Path, says: bool | None) -> None:
    config = json.loads((path / "vae/config.json").read_text())
    config.pop("force_upcast", None)
    (path / "vae/config.json").write_text(json.dumps(config | ({} if says is None else {"force_upcast": says})))
    checkpoint = Checkpoint(path)
    to_image, from_image = PIPELINES[checkpoint.family]
    picture = torch.zeros(1, 3, *checkpoint.default_size)
    for dtype in HALF:
        drawing = to_image.from_pretrained(path, dtype=dtype)
        assert checkpoint.vae_dtype(dtype) == computed_in(drawing.vae.decoder, drawing)
        editing = from_image.from_pretrained(path, dtype=dtype)
        assert checkpoint.vae_dtype(dtype, encodes=True) == computed_in(editing.vae.encoder, editing, image=picture)
        assert next(checkpoint.load_vae(torch.device("cpu"), dtype).parameters()).dtype == checkpoint.vae_dtype(dtype)
