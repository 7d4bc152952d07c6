"""Control images: maps of where a drawing's items are, without a word about their colours.

A control is kept as a map of classes (uint8 [height, width], 0 where nothing is) and painted with its kind's palette.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from scipy import ndimage

from ..drawing import SIZE, Layout, item_mask, sample_layout
from ..scenes import SHAPES, Scene

Kind = Literal["edges", "layout"]
"""``edges``: white outlines on black, one pixel wide. ``layout``: items filled with the colour of their shape."""

KINDS: tuple[Kind, ...] = get_args(Kind)

SEGMENT_COLOURS: dict[str, tuple[int, int, int]] = {
    "circle": (255, 0, 0),
    "square": (0, 255, 0),
    "triangle": (0, 0, 255),
    "star": (255, 255, 0),
    "ring": (255, 0, 255),
    "cross": (0, 255, 255),
}
"""What the items of a ``layout`` are filled with, by shape; the background is black."""

PALETTES: dict[Kind, np.ndarray] = {
    "edges": np.array([(0, 0, 0), (255, 255, 255)], dtype=np.uint8),
    "layout": np.array([(0, 0, 0), *(SEGMENT_COLOURS[shape] for shape in SHAPES)], dtype=np.uint8),
}
"""Colour of each class, uint8 [classes, 3]."""

EXTRA_SHIFT = 4.0
"""Pixels by which items stray farther, both ways, than where the family itself puts them."""
SMALLEST_SHARE = 0.8
"""Items shrink to as little as this share of the radius that the family itself gives them."""


def sample_control_layout(scene: Scene, rng: np.random.Generator) -> Layout:
    """Draws a layout that varies more than the family's own, so that following a control can be told from guessing.

    Args:
        scene: what the layout is for.
        rng: of positions, sizes, stripe phase and tint.

    Returns:
        Positions within 8 px of the nominal ones, radii of 15 to 28 px.
    """
    layout = sample_layout(scene, rng)
    placements = tuple(
        replace(
            placement,
            x=placement.x + rng.uniform(-EXTRA_SHIFT, EXTRA_SHIFT),
            y=placement.y + rng.uniform(-EXTRA_SHIFT, EXTRA_SHIFT),
            radius=placement.radius * rng.uniform(SMALLEST_SHARE, 1.0),
        )
        for placement in layout.placements
    )
    return replace(layout, placements=placements)


def inner_edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask, bool [height, width], that touch its outside; the picture's border is no edge."""
    return mask & ~ndimage.binary_erosion(mask, border_value=1)


def control_map(kind: Kind, scene: Scene, layout: Layout, size: int = SIZE) -> np.ndarray:
    """The classes of a control's pixels.

    Args:
        kind: of control.
        scene: whose items.
        layout: where they are.
        size: side of the picture, pixels.

    Returns:
        uint8 [size, size]: rows of the kind's palette.
    """
    classes = np.zeros((size, size), dtype=np.uint8)
    for item, placement in zip(scene.items, layout.placements, strict=True):
        mask = item_mask(item, placement, size=size) > 0.5
        classes[mask] = 0  # what an item hides has no edges
        if kind == "edges":
            classes[inner_edge(mask)] = 1
        else:
            classes[mask] = 1 + SHAPES.index(item.shape)
    return classes


def control_image(kind: Kind, scene: Scene, layout: Layout, size: int = SIZE) -> np.ndarray:
    """A control as a ControlNet takes it, uint8 [size, size, 3], RGB; arguments as for :func:`control_map`."""
    return PALETTES[kind][control_map(kind, scene, layout, size)]
