"""One repository with two pipelines that share ControlNets and text encoders, one of them on three shards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpc
from diffusers import ControlNetModel, DiffusionPipeline, StableDiffusionXLControlNetPipeline
from PIL import Image

from controls import Use, request
from file_server import wait_for
from wire import PROMPT

if TYPE_CHECKING:
    from conftest import TinyServer

TOLERANCE = 0.5
"""Mean absolute difference of pixels, in units of 1/255."""


def expected(pipeline: TinyServer, use: Use | None, seed: int) -> np.ndarray:
    """diffusers' picture."""
    oracle: Any = DiffusionPipeline.from_pretrained(pipeline.checkpoint, dtype=torch.float32)
    control = {}
    if use is not None:
        network = ControlNetModel.from_pretrained(pipeline.directory.parent / "sdxl" / use.name)
        oracle = StableDiffusionXLControlNetPipeline.from_pipe(oracle, controlnet=network)
        control = {"image": Image.fromarray(use.images[0]), "controlnet_conditioning_scale": use.scale}
    oracle.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    options = {"num_inference_steps": 5, "guidance_scale": 5.0, "height": 64, "width": 64}
    return np.asarray(oracle(PROMPT, generator=generator, **options, **control).images[0])


@pytest.mark.parametrize("name", ["sdxl", "other"])
@pytest.mark.parametrize("use", [None, Use("edges", 0.8)], ids=["bare", "controlled"])
def test_each_draws_what_diffusers_draws(pipelines: dict[str, TinyServer], name: str, use: Use | None) -> None:
    picture = request(pipelines[name], *([use] if use else []), STEPS=5)
    assert picture.distance(expected(pipelines[name], use, 7)) <= TOLERANCE


def test_text_encoders_and_controlnets_are_there_once(pipelines: dict[str, TinyServer]) -> None:
    with grpc.InferenceServerClient(pipelines["other"].grpc_url.split("://")[-1]) as client:
        models = [model.name for model in client.get_model_repository_index().models]
    assert "sdxl_text_encoder" in models
    assert "other_text_encoder" not in models
    names = ["depth", "edges", "pose", "sd15-depth", "sd15-edges", "sd15-pose", "sd15-shuffle", "union"]
    assert sorted(name for name in models if "controlnet" in name) == [f"controlnet_{name}" for name in names]


@pytest.mark.parametrize(("count", "shards"), [(1, 2), (2, 2), (5, 3)])
def test_three_shards_share_the_work_and_change_nothing(
    pipelines: dict[str, TinyServer], count: int, shards: int
) -> None:
    """One request is split over two, two go to one each, five to all: the pictures are those that each has alone.

    Once in a while one is not split: a shard that has lent itself to another a moment ago does not to a third.
    """
    wide = pipelines["sdxl"]
    alone = [request(wide, SEED=seed, STEPS=20) for seed in range(count)]

    def shared_by() -> int:
        with ThreadPoolExecutor(count) as threads:
            together = list(threads.map(lambda seed: request(wide, SEED=seed, STEPS=20), range(count)))
        for solo, shared in zip(alone, together, strict=True):
            assert shared.distance(solo) <= TOLERANCE
        return len({shard for picture in together for shard in picture.info["shards"]})

    wait_for(lambda: shared_by() >= shards)


def test_requests_of_both_share_the_controlnet(pipelines: dict[str, TinyServer]) -> None:
    use = Use("edges", 0.8)
    names = ["sdxl", "other", "sdxl", "other"]
    with ThreadPoolExecutor(len(names)) as threads:
        jobs = [threads.submit(request, pipelines[name], use, SEED=seed) for seed, name in enumerate(names)]
        pictures = [job.result() for job in jobs]
    for seed, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        assert picture.distance(expected(pipelines[name], use, seed)) <= TOLERANCE
