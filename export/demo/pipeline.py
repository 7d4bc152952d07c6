"""Puts the trained parts together as a diffusers SDXL pipeline, and samples from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .unet_training import NOISE_SCHEDULE

WEIGHTS = Path(__file__).parent / "weights"
"""The committed weights."""
SCHEDULERS: dict[str, type[SchedulerMixin]] = {
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
}
STEPS = 20
GUIDANCE_SCALE = 2.0


def assemble(work: Path, out: Path, unet: UNet2DConditionModel | None = None) -> None:
    """Writes the pipeline's folder: float16 weights, configurations that make plain ``from_pretrained`` give float32.

    The scheduler's configuration says, as SDXL's does, that DDIM shall not clip its samples; Euler ignores it.

    Args:
        work: the training's folder.
        out: the pipeline's folder.
        unet: float16, in place of the finished one of ``work``.
    """
    half = torch.float16
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae", torch_dtype=half),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder", dtype=half),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(work / "text_encoder_2", dtype=half),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(work / "tokenizer_2"),
        unet=unet or UNet2DConditionModel.from_pretrained(work / "unet", torch_dtype=half),
        scheduler=EulerDiscreteScheduler.from_config({**NOISE_SCHEDULE, "clip_sample": False}),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipeline.save_pretrained(out)
    for path in out.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        if "dtype" in config:
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer", "tokenizer_2"):
        for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            (out / name / file).write_bytes((work / name / file).read_bytes())


def load_pipeline(weights: Path = WEIGHTS, scheduler: str | None = None) -> StableDiffusionXLPipeline:
    """Loads the pipeline in float32, without progress bars.

    Args:
        weights: its folder.
        scheduler: one of ``SCHEDULERS``; None for the family's own.
    """
    pipeline = StableDiffusionXLPipeline.from_pretrained(weights)
    if scheduler is not None:
        pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: StableDiffusionXLPipeline,
    prompts: list[str],
    seeds: list[int],
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    batch_size: int = 16,
) -> Iterator[np.ndarray]:
    """Generates one picture per prompt, each from its own generator: the batch size does not change them.

    Args:
        pipeline: of the family.
        prompts: what to draw.
        seeds: one per prompt.
        steps: sampler steps.
        guidance_scale: of classifier-free guidance.
        batch_size: pictures at a time.

    Yields:
        uint8 [128, 128, 3], in order.
    """
    for start in range(0, len(prompts), batch_size):
        chosen = slice(start, start + batch_size)
        yield from np.round(
            255
            * pipeline(
                prompts[chosen],
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds[chosen]],
                output_type="np",
            ).images
        ).astype(np.uint8)
