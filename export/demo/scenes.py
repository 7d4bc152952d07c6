"""The world that the demo family draws: one or two coloured shapes on a coloured background.

Everything that can be said about a picture of this world is an attribute of its :class:`Scene`; captions, drawings,
the text encoders' pretraining targets and the checker's verdicts are all derived from it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

Position = Literal["top", "bottom", "left", "right", "centre"]
Texture = Literal["plain", "striped"]

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "ring", "cross")
SHAPE_COLOURS: tuple[str, ...] = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BACKGROUND_COLOURS: tuple[str, ...] = ("white", "black", "grey", "brown", "yellow", "green", "cyan", "pink")
TEXTURES: tuple[Texture, ...] = ("plain", "striped")
POSITIONS: tuple[Position, ...] = ("top", "bottom", "left", "right", "centre")

RGB: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (250, 130, 20),
    "yellow": (250, 220, 40),
    "green": (30, 150, 60),
    "cyan": (70, 205, 225),
    "blue": (35, 70, 215),
    "purple": (130, 40, 165),
    "pink": (250, 145, 195),
    "white": (250, 250, 250),
    "black": (18, 18, 20),
    "grey": (128, 128, 130),
    "brown": (115, 70, 35),
}

HELD_OUT_ONE_IN = 10
"""One arrangement of items in this many is never shown in training."""


@dataclass(frozen=True)
class Item:
    """One coloured shape and where it stands."""

    colour: str
    shape: str
    position: Position


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        items: one item at any position, or two: (top, bottom) or (left, right), in this order.
        background: one of ``BACKGROUND_COLOURS``, different from every item's colour.
        texture: how the background is painted.
    """

    items: tuple[Item, ...]
    background: str
    texture: Texture = "plain"

    def __post_init__(self) -> None:
        positions = tuple(item.position for item in self.items)
        if len(positions) != 1 and positions not in (("top", "bottom"), ("left", "right")):
            raise ValueError(f"items stand at {positions}; allowed: one item, (top, bottom) or (left, right)")
        if any(item.colour == self.background for item in self.items):
            raise ValueError(f"an item of colour {self.background!r} cannot be seen on a {self.background} background")


def is_held_out(scene: Scene) -> bool:
    """Whether this arrangement of items (on whatever background) is kept out of the UNet's training."""
    key = "|".join(f"{item.colour} {item.shape} {item.position}" for item in scene.items)
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def sample_scene(rng: np.random.Generator, held_out: bool | None = None) -> Scene:
    """Draws a random scene.

    Args:
        rng: source of randomness.
        held_out: True for held-out arrangements only, False for training arrangements only, None for any.

    Returns:
        A scene with two items in two cases of three, striped in one case of five.
    """
    while True:
        scene = _sample_any_scene(rng)
        if held_out is None or is_held_out(scene) == held_out:
            return scene


def _sample_any_scene(rng: np.random.Generator) -> Scene:
    layouts: tuple[tuple[Position, ...], ...] = (("top", "bottom"), ("left", "right"))
    two_items = rng.random() < 2 / 3
    positions = layouts[rng.integers(2)] if two_items else (POSITIONS[rng.integers(len(POSITIONS))],)
    background = BACKGROUND_COLOURS[rng.integers(len(BACKGROUND_COLOURS))]
    colours = [colour for colour in SHAPE_COLOURS if colour != background]
    items = tuple(
        Item(colours[rng.integers(len(colours))], SHAPES[rng.integers(len(SHAPES))], position) for position in positions
    )
    return Scene(items, background, "striped" if rng.random() < 0.2 else "plain")
