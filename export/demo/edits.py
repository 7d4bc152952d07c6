"""Pictures to edit: a drawn scene, one of its two items masked, and a prompt that wants another there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .captions import write_caption
from .drawing import SIZE, Placement, draw, sample_layout
from .scenes import SHAPE_COLOURS, SHAPES, Item, Scene, sample_scene

if TYPE_CHECKING:
    from collections.abc import Iterator

ITEMS = 2
REACH, ROOM = 1.15, 5
"""Half the side of a mask: so many radii of the item, and so many pixels."""


@dataclass(frozen=True)
class SceneEdit:
    """One item that becomes another.

    Attributes:
        picture: What is edited, uint8 [SIZE, SIZE, 3].
        mask: uint8 [SIZE, SIZE]: 255 where it may change, else 0.
        before: The picture in words.
        after: What it should be.
        scene: The same, for `checker.check`.
        seed: To draw it with.
    """

    picture: np.ndarray
    mask: np.ndarray
    before: str
    after: str
    scene: Scene
    seed: int


def scene_edits(seed: int = 11) -> Iterator[SceneEdit]:
    """Edits without end; with the same seed the same ones."""
    rng = np.random.default_rng(seed)
    number = 0
    while True:
        scene = sample_scene(rng)
        if len(scene.items) != ITEMS:
            continue
        which = int(rng.integers(ITEMS))
        items = list(scene.items)
        items[which] = _another(scene, which, rng)
        edited, layout = replace(scene, items=tuple(items)), sample_layout(scene, rng)
        mask = _around(layout.placements[which])
        yield SceneEdit(draw(scene, layout), mask, _words(scene), _words(edited), edited, number)
        number += 1


def _another(scene: Scene, which: int, rng: np.random.Generator) -> Item:
    """Of another shape, in a colour that the scene does not have."""
    old, taken = scene.items[which], {scene.background, *(item.colour for item in scene.items)}
    colours = [colour for colour in SHAPE_COLOURS if colour not in taken]
    shapes = [shape for shape in SHAPES if shape != old.shape]
    return Item(colours[rng.integers(len(colours))], shapes[rng.integers(len(shapes))], old.position)


def _around(placement: Placement) -> np.ndarray:
    half = REACH * placement.radius + ROOM
    mask = np.zeros((SIZE, SIZE), np.uint8)
    rows, columns = (slice(max(0, int(at - half)), int(at + half) + 1) for at in (placement.y, placement.x))
    mask[rows, columns] = 255
    return mask


def _words(scene: Scene) -> str:
    return write_caption(scene, np.random.default_rng(0), simple=True).text
