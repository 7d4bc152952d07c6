"""Measures the ControlNets on held-out prompts: whether pictures follow a control, and still show what the prompt says.

Each prompt gets one layout, drawn at random; its controls go through diffusers' own pipelines at scale 1. The same
prompts and seeds without a ControlNet are held against the same controls.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from diffusers import StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline
from rich.progress import track

from ..checker import check
from ..evaluate import shares
from ..pipeline import GUIDANCE_SCALE, STEPS, generate, load_pipeline
from ..prompts import Prompt, held_out_prompts
from .adherence import adherence
from .controls import KINDS, Kind, control_image, sample_control_layout
from .data import to_control_tensor
from .training import CONTROLNETS, load_controlnet

BATCH_SIZE = 10
SHEET_COLUMNS = 8

Controls = dict[Kind, list[np.ndarray]]
"""Control images by kind, uint8 [128, 128, 3], one per prompt."""


def sample_controls(prompts: Sequence[Prompt]) -> Controls:
    """Draws one layout for each prompt's scene, seeded by the prompt, and its controls of all kinds."""
    layouts = [sample_control_layout(prompt.scene, np.random.default_rng([11, prompt.seed])) for prompt in prompts]
    drawn = list(zip(prompts, layouts, strict=True))
    return {kind: [control_image(kind, prompt.scene, layout) for prompt, layout in drawn] for kind in KINDS}


def draw_controlled(
    pipeline: StableDiffusionXLPipeline,
    prompts: Sequence[Prompt],
    controls: Controls,
    kinds: Sequence[Kind],
    folder: Path = CONTROLNETS,
) -> Iterator[np.ndarray]:
    """Generates the prompts' pictures with ControlNets, all at scale 1.

    Args:
        pipeline: of the family.
        prompts: what to draw.
        controls: of the prompts.
        kinds: which ControlNets; with none, the plain pipeline draws.
        folder: of the weights.

    Yields:
        uint8 [128, 128, 3], in order.
    """
    if kinds:
        networks = [load_controlnet(kind, folder) for kind in kinds]
        pipeline = StableDiffusionXLControlNetPipeline.from_pipe(
            pipeline, controlnet=networks if len(networks) > 1 else networks[0]
        )
        pipeline.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), BATCH_SIZE):
        chosen = slice(start, start + BATCH_SIZE)
        images = [to_control_tensor(np.stack(controls[kind][chosen])) for kind in kinds]
        bound = partial(pipeline, image=images if len(images) > 1 else images[0]) if images else pipeline
        texts, seeds = [p.text for p in prompts[chosen]], [p.seed for p in prompts[chosen]]
        yield from generate(bound, texts, seeds, STEPS, GUIDANCE_SCALE, BATCH_SIZE)


def judge(pictures: list[np.ndarray], prompts: Sequence[Prompt], controls: Controls) -> dict:
    """Adherence to the controls of every kind, mean and 10th percentile; shares of pictures right in each attribute."""
    figures: dict[str, dict[str, float]] = {}
    for kind, images in controls.items():
        scores = [adherence(kind, picture, image) for picture, image in zip(pictures, images, strict=True)]
        tenth = float(np.percentile(scores, 10))
        figures[kind] = {"mean": round(float(np.mean(scores)), 4), "lowest_tenth": round(tenth, 4)}
    verdicts = [check(picture, prompt.scene) for picture, prompt in zip(pictures, prompts, strict=True)]
    return {"adherence": figures, "right": shares(verdicts)}


def evaluate(kinds: Sequence[Kind], count: int, folder: Path = CONTROLNETS) -> tuple[dict, list[np.ndarray]]:
    """Measures ControlNets, each by itself and all together, and the plain pipeline.

    Args:
        kinds: which.
        count: how many held-out prompts.
        folder: of the weights.

    Returns:
        Figures and settings, ready to be written as JSON; and rows of eight pictures: without a ControlNet, each
        control and what was made of it, and what was made of all together.
    """
    pipeline = load_pipeline()
    prompts = held_out_prompts(count)
    controls = sample_controls(prompts)
    ways: list[tuple[Kind, ...]] = [(), *((kind,) for kind in kinds)]
    if len(kinds) > 1:
        ways.append(tuple(kinds))
    figures: dict[str, dict] = {}
    sheet: list[np.ndarray] = []
    blank = np.full((128, 128, 3), 255, dtype=np.uint8)
    for way in ways:
        label = " + ".join(way) or "none"
        drawn = draw_controlled(pipeline, prompts, controls, way, folder)
        pictures = list(track(drawn, description=label, total=count))
        figures[label] = judge(pictures, prompts, controls)
        rows = [pictures] if len(way) != 1 else [controls[way[0]], pictures]
        for row in rows:
            sheet += [*row[:SHEET_COLUMNS], *[blank] * (SHEET_COLUMNS - count)]
    settings = {"prompts": count, "steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "conditioning_scale": 1.0}
    versions = {package: version(package) for package in ("torch", "diffusers", "numpy")}
    return settings | {"with": figures, "versions": versions | {"python": platform.python_version()}}, sheet
