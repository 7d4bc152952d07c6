"""Measures how well the family obeys prompts it was never trained on, by letting the checker look at the pictures."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from .checker import Verdict, check
from .pipeline import GUIDANCE_SCALE, SCHEDULERS, STEPS, WEIGHTS, generate, load_pipeline
from .prompts import Prompt, held_out_prompts

ATTRIBUTES = ("colours", "shapes", "positions", "background", "texture", "everything")


def shares(verdicts: list[Verdict]) -> dict[str, float]:
    """The share of pictures, 0..1, in which each attribute is right."""
    return {name: round(float(np.mean([getattr(verdict, name) for verdict in verdicts])), 4) for name in ATTRIBUTES}


def judge(
    weights: Path,
    prompts: list[Prompt],
    scheduler: str | None = None,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
) -> Iterator[tuple[Prompt, np.ndarray, Verdict]]:
    """Draws prompts and checks the pictures.

    Args:
        weights: the pipeline's folder.
        prompts: what to draw.
        scheduler: one of ``pipeline.SCHEDULERS``; None for the family's own.
        steps: sampler steps.
        guidance_scale: of classifier-free guidance.

    Yields:
        Prompt, picture (uint8 [128, 128, 3]) and verdict.
    """
    pipeline = load_pipeline(weights, scheduler)
    pictures = generate(pipeline, [p.text for p in prompts], [p.seed for p in prompts], steps, guidance_scale)
    for prompt, picture in zip(prompts, pictures, strict=True):
        yield prompt, picture, check(picture, prompt.scene)


def evaluate(
    weights: Path = WEIGHTS,
    count: int = 200,
    scheduler: str | None = None,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
) -> dict:
    """Measures the share of held-out prompts whose picture is right.

    Args:
        weights: the pipeline's folder.
        count: how many prompts.
        scheduler: one of ``pipeline.SCHEDULERS``; None for the family's own.
        steps: sampler steps.
        guidance_scale: of classifier-free guidance.

    Returns:
        Figures, settings and versions, ready to be written as JSON.
    """
    started = time.monotonic()
    prompts = held_out_prompts(count)
    judged = track(judge(weights, prompts, scheduler, steps, guidance_scale), total=count, description="evaluate")
    verdicts = [verdict for _, _, verdict in judged]
    by_items = {
        f"{items} item{'s' * (items > 1)}": shares(
            [v for v, p in zip(verdicts, prompts, strict=True) if len(p.scene.items) == items]
        )
        for items in (1, 2)
    }
    return {
        "prompts": count,
        "scheduler": scheduler or "the checkpoint's own (Euler)",
        "steps": steps,
        "guidance_scale": guidance_scale,
        "right": shares(verdicts),
        "right_by_number_of_items": by_items,
        "seconds": round(time.monotonic() - started, 1),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")}
        | {"python": platform.python_version()},
    }


def sweep(weights: Path = WEIGHTS, count: int = 50) -> dict[str, dict[str, dict[str, float]]]:
    """Measures what samplers, guidance scales and numbers of steps do, each by itself, on the first held-out prompts.

    Args:
        weights: the pipeline's folder.
        count: how many prompts.

    Returns:
        Shares of right pictures by kind of setting and by setting.
    """
    settings: dict[str, dict[str, dict]] = {
        "scheduler": {name: {"scheduler": name} for name in SCHEDULERS},
        "guidance_scale": {str(scale): {"guidance_scale": scale} for scale in (1.0, 1.5, 3.0, 5.0)},
        "steps": {str(steps): {"steps": steps} for steps in (5, 10, 40)},
    }
    prompts = held_out_prompts(count)
    return {
        kind: {
            name: shares([verdict for _, _, verdict in judge(weights, prompts, **options)])
            for name, options in track(group.items(), description=kind)
        }
        for kind, group in settings.items()
    }


def contact_sheet(pictures: list[np.ndarray], columns: int = 8) -> Image.Image:
    """Lays pictures, uint8 [128, 128, 3], out in rows, 2 px apart."""
    height, width, _ = pictures[0].shape
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + 2), columns * (width + 2), 3), 255, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        y, x = index // columns * (height + 2), index % columns * (width + 2)
        sheet[y : y + height, x : x + width] = picture
    return Image.fromarray(sheet)
