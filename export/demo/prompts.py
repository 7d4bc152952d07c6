"""Prompts that the UNet was never trained on, with the scenes they describe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .captions import write_caption
from .scenes import Scene, sample_scene


@dataclass(frozen=True)
class Prompt:
    """A prompt, what it should show, and the seed to draw it with."""

    text: str
    scene: Scene
    seed: int


def held_out_prompts(count: int, seed: int = 2025, simple: bool = False) -> list[Prompt]:
    """Writes prompts about arrangements of items that training leaves out; each names its background.

    Args:
        count: how many.
        seed: of the choice; the first prompts of a longer list are those of a shorter one.
        simple: in the plainest wording only, else in all the wordings of the training captions.
    """
    rng = np.random.default_rng(seed)
    prompts: list[Prompt] = []
    while len(prompts) < count:
        scene = sample_scene(rng, held_out=True)
        caption = write_caption(scene, rng, simple)
        if caption.names_background:
            prompts.append(Prompt(caption.text, scene, seed=len(prompts)))
    return prompts
