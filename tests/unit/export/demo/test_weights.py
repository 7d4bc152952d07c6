"""The committed weights are a plain diffusers SDXL folder, and draw what prompts ask for."""

import json

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

from swiftdiffusion.export.demo.checker import check
from swiftdiffusion.export.demo.pipeline import SCHEDULERS, WEIGHTS, generate, load_pipeline
from swiftdiffusion.export.demo.prompts import held_out_prompts
from swiftdiffusion.export.demo.scenes import Item, Scene

EVALUATION = WEIGHTS.parent / "evaluation.json"
MODULES = ("unet", "vae", "text_encoder", "text_encoder_2")

pytestmark = [
    pytest.mark.skipif(not EVALUATION.exists(), reason="weights are still in training"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    return load_pipeline()


def test_plain_loading_gives_float32(pipeline: StableDiffusionXLPipeline) -> None:
    for name in MODULES:
        module = getattr(pipeline, name)
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}, name
        assert all(torch.isfinite(parameter).all() for parameter in module.parameters()), name
    assert isinstance(pipeline.scheduler, EulerDiscreteScheduler)
    assert not pipeline.config.force_zeros_for_empty_prompt


def test_weights_are_small_and_safe() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}


def test_shapes_are_those_of_sdxl(pipeline: StableDiffusionXLPipeline) -> None:
    config = pipeline.unet.config
    assert config.addition_embed_type == "text_time"
    assert config.cross_attention_dim == sum(
        encoder.config.hidden_size for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)
    )
    assert pipeline.vae_scale_factor == 8
    assert pipeline.default_sample_size * pipeline.vae_scale_factor == 128


def test_latents_have_mean_zero_and_deviation_one(pipeline: StableDiffusionXLPipeline) -> None:
    from swiftdiffusion.export.demo.drawing import draw_random
    from swiftdiffusion.export.demo.scenes import sample_scene
    from swiftdiffusion.export.demo.vae_training import to_pictures, to_tensor

    rng = np.random.default_rng(5)
    scenes = [sample_scene(rng) for _ in range(32)]
    images = to_tensor(np.stack([draw_random(scene, rng) for scene in scenes]))
    with torch.no_grad():
        means = pipeline.vae.encode(images).latent_dist.mean
        pictures = to_pictures(pipeline.vae.decode(means[:8]).sample)
    latents = means * pipeline.vae.config.scaling_factor
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.4
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.3
    right = [check(picture, scene).everything for picture, scene in zip(pictures, scenes, strict=False)]
    assert sum(right) >= 7


def test_held_out_prompts_come_out_right(pipeline: StableDiffusionXLPipeline) -> None:
    prompts = held_out_prompts(4, simple=True)
    pictures = generate(pipeline, [p.text for p in prompts], [p.seed for p in prompts], steps=10)
    verdicts = [check(picture, prompt.scene) for picture, prompt in zip(pictures, prompts, strict=True)]
    assert sum(verdict.everything for verdict in verdicts) >= 3, verdicts


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_draws(pipeline: StableDiffusionXLPipeline, name: str) -> None:
    scene = Scene((Item("red", "circle", "centre"),), "white")
    own = pipeline.scheduler
    pipeline.scheduler = SCHEDULERS[name].from_config(own.config)
    try:
        (picture,) = generate(pipeline, ["a red circle on a white background"], [0], steps=8)
    finally:
        pipeline.scheduler = own
    verdict = check(picture, scene)
    assert verdict.colours
    assert verdict.background


def test_evaluation_is_of_these_versions_and_reaches_the_goals() -> None:
    figures = json.loads(EVALUATION.read_text())
    assert figures["prompts"] >= 200
    assert figures["right"]["colours"] >= 0.95
    assert figures["right"]["shapes"] >= 0.9
    assert figures["right"]["positions"] >= 0.8
