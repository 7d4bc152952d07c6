"""The denoising loop without a server equals diffusers' pipeline, also for UNets that embed the guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionXLPipeline,
)

import checkpoints
from swiftdiffusion.python_backends.engine.guidance import guidance_embedding
from swiftdiffusion.python_backends.engine.run import Denoising, LatentGeometry
from swiftdiffusion.python_backends.engine.unet_calls import unet_calls
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.latent_decoding import decode_latents
from swiftdiffusion.python_backends.networks.prompt_encoding import PromptEncoder
from swiftdiffusion.python_backends.networks.unet import UNet
from swiftdiffusion.python_backends.request.completed import CompletedRequest

CPU = torch.device("cpu")


def make(family: str, directory: Path, scheduler: SchedulerMixin | None = None, **options: object) -> Checkpoint:
    """A checkpoint with pictures of 32×32 pixels; those of a family differ in what the options say alone."""
    return Checkpoint(getattr(checkpoints, family)(directory, scheduler, depth=2, **options))


def load(checkpoint: Checkpoint) -> UNet:
    return UNet(checkpoint, CPU, torch.float32)


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], UNet]:
    """Of a family; traced once for all its checkpoints, which takes longer than their denoising."""
    return cache(lambda family: load(make(family, tmp_path_factory.mktemp(family))))


@torch.no_grad()
def denoise(checkpoint: Checkpoint, unet: UNet, request: CompletedRequest) -> Denoising:
    """All steps of one request, its halves one by one."""
    encoder = PromptEncoder(checkpoint, CPU, torch.float32, lora_directory=checkpoint.path)
    negative, prompt = encoder.texts(request)
    found = encoder.encode([text for text in (negative, prompt) if text is not None])
    pair = [found[prompt].zeros() if negative is None else found[negative], found[prompt]]
    pooled = [embedding.pooled for embedding in pair if embedding.pooled is not None]
    geometry = LatentGeometry(
        checkpoint.latent_channels, checkpoint.vae_scale_factor, checkpoint.guidance_embedding_width
    )
    denoising = Denoising(
        request,
        checkpoint.scheduler_config,
        geometry,
        (torch.stack([embedding.tokens for embedding in pair]), torch.stack(pooled) if pooled else None),
    )
    while not denoising.done:
        inputs = {denoising: denoising.model_input()}
        predictions = {}
        for half in denoising.halves:
            (call,) = unet_calls([(denoising, half)], inputs)
            predictions[half] = unet(call.tensors)
        denoising.advance(predictions)
    return denoising


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler, PNDMScheduler])
def test_samplers_with_more_evaluations_than_steps(
    unet: Callable[[str], UNet], tmp_path: Path, family: str, scheduler: type
) -> None:
    made = make(family, tmp_path, scheduler(beta_schedule="scaled_linear"))
    request = CompletedRequest("run", "a cat", "blurry", 5, 4, 5.0, 32, 48, None)
    denoising = denoise(made, unet(family), request)
    assert denoising.steps > request.steps
    assert compare(made.path, denoising) <= 1e-4


def test_a_guidance_distilled_unet(tmp_path: Path) -> None:
    made = make("sdxl", tmp_path, LCMScheduler(), time_cond_proj_dim=32)
    denoising = denoise(made, load(made), CompletedRequest("run", "a cat", None, 5, 4, 8.0, 32, 32, None))
    assert denoising.halves == (1,)
    assert compare(made.path, denoising) <= 1e-4


@pytest.mark.parametrize("width", [32, 33, 256])
def test_guidance_is_embedded_as_by_the_pipeline(width: int) -> None:
    expected = StableDiffusionXLPipeline.get_guidance_scale_embedding(None, torch.tensor([7.5 - 1.0]), width)
    assert torch.equal(guidance_embedding(7.5, width), expected)


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DDIMScheduler])
def test_guidance_rescale_on_a_zero_snr_checkpoint(
    unet: Callable[[str], UNet], tmp_path: Path, family: str, scheduler: type
) -> None:
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    made = make(family, tmp_path, scheduler(beta_schedule="scaled_linear", **zero_snr))
    latents = []
    for share, guidance in ((0.0, 8.0), (0.7, 8.0), (1.0, 8.0), (0.0, 1.0), (0.7, 1.0)):
        request = CompletedRequest("run", "a cat", "blurry", 5, 4, guidance, 32, 48, None, guidance_rescale=share)
        denoising = denoise(made, unet(family), request)
        assert compare(made.path, denoising) <= 1e-4
        latents.append(denoising.latents)
    assert not any(torch.allclose(latents[0], other) for other in latents[1:3])
    assert torch.equal(*latents[3:])  # nothing without guidance


def test_zeros_for_an_absent_negative_prompt_only_where_the_checkpoint_says_so(
    unet: Callable[[str], UNet], tmp_path: Path
) -> None:
    made = make("sdxl", tmp_path, force_zeros_for_empty_prompt=False)
    request = CompletedRequest("run", "a cat", None, 5, 3, 8.0, 32, 32, None)
    assert compare(made.path, denoise(made, unet("sdxl"), request)) <= 1e-4


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_a_checkpoint_with_weights_of_the_fp16_variant_only(
    unet: Callable[[str], UNet], tmp_path: Path, family: str
) -> None:
    plain, variant = make(family, tmp_path / "plain"), tmp_path / "fp16"
    DiffusionPipeline.from_pretrained(plain.path, dtype=torch.float32).save_pretrained(variant, variant="fp16")
    assert not any(".fp16" not in file.name for file in variant.rglob("*.safetensors"))
    request = CompletedRequest("run", "a cat", "blurry", 5, 3, 8.0, 32, 32, None)
    expected = denoise(plain, unet(family), request)
    found = denoise(Checkpoint(variant), load(Checkpoint(variant)), request)
    assert torch.equal(found.latents, expected.latents)


def test_prompts_of_unlike_lengths_are_evaluated_in_calls_of_their_own() -> None:
    """In each the unconditional rows first, and then the conditional ones of the same requests."""
    config = {"_class_name": "DDIMScheduler"}
    runs = [
        Denoising(
            CompletedRequest(str(tokens), "", None, 5, 4, 5.0, 32, 32, None),
            config,
            LatentGeometry(4, 8),
            (torch.zeros(2, tokens, 16), None),
        )
        for tokens in (77, 154, 77)
    ]
    calls = unet_calls([(run, half) for run in runs for half in run.halves], {run: run.model_input() for run in runs})
    shapes = [tuple(call.tensors["ENCODER_HIDDEN_STATES"].shape) for call in calls]
    assert shapes == [(4, 77, 16), (2, 154, 16)]
    together = calls[0]
    assert together.rows == tuple((runs[number], half) for half in (0, 1) for number in (0, 2))
    assert together.halves_alike and torch.equal(*together.tensors["LATENTS"].chunk(2))
    assert together.of((0, 2)).halves_alike
    assert not together.of((0, 1)).halves_alike, "two requests"
    assert not together.of((0, 2, 3)).halves_alike
    assert not together.of((0, 3)).halves_alike
    assert not replace(together, rows=()).halves_alike, "another shard's"


@torch.no_grad()
def compare(made: Path, denoising: Denoising) -> float:
    """Mean absolute difference of latents and of pixels in [0, 1], whichever is larger."""
    pipeline = DiffusionPipeline.from_pretrained(made, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    request = denoising.request
    options = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "guidance_rescale": request.guidance_rescale,
        "height": request.height,
        "width": request.width,
    }
    generator = torch.Generator("cpu")
    latents = pipeline(**options, output_type="latent", generator=generator.manual_seed(request.seed)).images
    pixels = pipeline(**options, output_type="pt", generator=generator.manual_seed(request.seed)).images
    ours = decode_latents(pipeline.vae, denoising.latents).permute(0, 3, 1, 2) / 255
    rounding = 0.5 / 255
    of_pixels = max(0.0, float((ours - pixels).abs().mean()) - rounding)
    return max(float((latents - denoising.latents).abs().mean()), of_pixels)
