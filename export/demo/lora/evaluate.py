"""Measures the LoRAs on held-out prompts: how strong the style is, and whether pictures show what was asked for.

A LoRA is merged exactly, in float32. For comparison: the plain model, a LoRA without its text encoders' part, and
diffusers' own loader on the file whose alphas differ between attention layers.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from diffusers import StableDiffusionXLPipeline
from rich.progress import track

from ..drawing import PLAIN_STYLE, Style
from ..evaluate import shares
from ..pipeline import GUIDANCE_SCALE, STEPS, generate, load_pipeline
from ..prompts import Prompt, held_out_prompts
from .checking import check_styled
from .merging import merged
from .recipes import LORAS, RECIPES, Recipe
from .scores import style_score

BATCH_SIZE = 10


@dataclass(frozen=True)
class Judgement:
    """The figures of one way to apply a LoRA.

    Attributes:
        style_score: mean over the prompts, 0..1.
        lowest_style_scores: the 10th percentile.
        right: share of prompts in which each attribute is right, the style taken back.
    """

    style_score: float
    lowest_style_scores: float
    right: dict[str, float]


def judge(pictures: list[np.ndarray], prompts: list[Prompt], style: Style, painted_in: Style) -> Judgement:
    """Scores pictures for a style and checks what they show.

    Args:
        pictures: uint8 [128, 128, 3], one per prompt.
        prompts: what was asked for.
        style: to score.
        painted_in: the style to take back before checking.
    """
    scores = [style_score(picture, prompt.scene, style) for picture, prompt in zip(pictures, prompts, strict=True)]
    verdicts = [check_styled(picture, p.scene, painted_in) for picture, p in zip(pictures, prompts, strict=True)]
    lowest = float(np.percentile(scores, 10))
    return Judgement(round(float(np.mean(scores)), 4), round(lowest, 4), shares(verdicts))


def draw_prompts(
    pipeline: StableDiffusionXLPipeline, prompts: list[Prompt], recipe: Recipe | None, label: str
) -> list[np.ndarray]:
    """Generates the prompts' pictures, with the recipe's trigger if it has one; uint8 [128, 128, 3] each."""
    texts = [prompt.text if recipe is None else recipe.prompt(prompt.text) for prompt in prompts]
    seeds = [prompt.seed for prompt in prompts]
    pictures = generate(pipeline, texts, seeds, STEPS, GUIDANCE_SCALE, BATCH_SIZE)
    return list(track(pictures, description=label, total=len(prompts)))


@contextmanager
def loaded_by_diffusers(pipeline: StableDiffusionXLPipeline, path: Path) -> Iterator[StableDiffusionXLPipeline]:
    """The pipeline with a LoRA as diffusers' own loader applies it."""
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    try:
        yield pipeline
    finally:
        pipeline.unload_lora_weights()


def evaluate(names: list[str], count: int, comparisons: int, folder: Path = LORAS) -> tuple[dict, list[np.ndarray]]:
    """Measures LoRAs with and without.

    Args:
        names: which.
        count: how many held-out prompts.
        comparisons: how many of them for the comparisons that are no part of normal use.
        folder: of the files.

    Returns:
        Figures and settings, ready to be written as JSON; and the first pictures with each LoRA, then without.
    """
    pipeline = load_pipeline()
    prompts = held_out_prompts(count)
    few = prompts[:comparisons]
    plain = draw_prompts(pipeline, prompts, None, "without LoRA")
    figures: dict[str, dict] = {}
    sheet: list[np.ndarray] = plain[:8]
    for name in names:
        recipe, path = RECIPES[name], folder / f"{name}.safetensors"
        with merged(pipeline, path):
            pictures = draw_prompts(pipeline, prompts, recipe, name)
            untriggered = draw_prompts(pipeline, few, None, f"{name} without trigger") if recipe.trigger else None
        found = {
            "with": judge(pictures, prompts, recipe.style, recipe.style),
            "without": judge(plain, prompts, recipe.style, PLAIN_STYLE),
        }
        sheet += pictures[:8]
        if untriggered is not None:
            found["without trigger"] = judge(untriggered, few, recipe.style, PLAIN_STYLE)
        if recipe.text_rank:
            with merged(pipeline, path, parts=("unet",)):
                pictures = draw_prompts(pipeline, few, recipe, f"{name} without text encoders")
            found["without its text encoders' part"] = judge(pictures, few, recipe.style, PLAIN_STYLE)
        if recipe.kept_energy is not None:
            with loaded_by_diffusers(pipeline, path):
                pictures = draw_prompts(pipeline, few, recipe, f"{name} by diffusers")
            found["as loaded by diffusers"] = judge(pictures, few, recipe.style, recipe.style)
        figures[name] = {way: vars(judgement) for way, judgement in found.items()}
    settings = {"prompts": count, "comparison_prompts": comparisons, "steps": STEPS, "guidance_scale": GUIDANCE_SCALE}
    versions = {package: version(package) for package in ("torch", "diffusers", "peft", "numpy")}
    return settings | {"loras": figures, "versions": versions | {"python": platform.python_version()}}, sheet
