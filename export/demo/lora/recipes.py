"""The LoRAs of the demo family: what each teaches, and how it is trained and saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..drawing import Style

LORAS = Path(__file__).parents[1] / "loras"
"""The committed files, ``NAME.safetensors``."""

FileFormat = Literal["peft", "kohya"]
"""What people's files look like: diffusers' own, or sd-scripts'."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TRANSFORMER = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv_in", "conv1", "conv2", "conv_shortcut", "conv_out")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class Recipe:
    """One LoRA.

    Attributes:
        name: its public name, and its file's.
        style: how pictures look with it.
        file_format: how it is saved.
        targets: ends of the names of the UNet's modules that it changes. Its upper level, which paints the details, has
            no attention, so without convolutions no texture is learnt.
        rank: of every linear layer.
        alpha: the product of the factors counts ``alpha / rank`` times.
        convolution_rank: of every convolution; its alpha is in the same proportion.
        text_rank: of the text encoders' layers; 0 leaves the text encoders alone.
        trigger: added to captions to ask for the style; None if the LoRA alone does.
        kept_energy: after training, each module keeps the smallest rank whose singular values hold this share of
            its squared norm, as sd-scripts' ``resize_lora`` does; None keeps every rank.
        settling_steps: optimiser steps after that, for the smaller factors to settle.
        steps: optimiser steps.
        learning_rate: the highest of the cosine.
    """

    name: str
    style: Style
    file_format: FileFormat
    targets: tuple[str, ...] = (*TRANSFORMER, *CONVOLUTIONS)
    rank: int = 8
    alpha: float = 4.0
    convolution_rank: int = 4
    text_rank: int = 0
    trigger: str | None = None
    kept_energy: float | None = None
    settling_steps: int = 150
    steps: int = 1200
    learning_rate: float = 3e-3

    def prompt(self, text: str) -> str:
        """The prompt that asks for ``text`` in this style."""
        return text if self.trigger is None else f"{text}, {self.trigger}"


NIGHT = ((0.5, 0.08, 0.02), (0.05, 0.55, 0.08), (0.1, 0.15, 0.85))
SUNSET = ((0.74, 0.06, 0.02), (0.03, 0.56, 0.03), (0.0, 0.04, 0.4))

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "hatched",
            Style(fill="hatched", line_width=10.0, between_lines=0.35),
            "peft",
            rank=4,
            alpha=3.0,
            convolution_rank=4,
        ),
        Recipe(
            "night",
            Style(colour_matrix=NIGHT),
            "kohya",
            rank=16,
            alpha=8.0,
            convolution_rank=8,
            kept_energy=0.98,
            steps=550,
        ),
        Recipe("outline", Style(fill="outline", line_width=5.0), "kohya", rank=3, alpha=1.5),
        Recipe(
            "sunset",
            Style(gradient=0.4, colour_matrix=SUNSET),
            "kohya",
            rank=4,
            alpha=2.0,
            text_rank=4,
            trigger="in the style of sunset",
        ),
    )
}
