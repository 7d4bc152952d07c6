"""Looks at a picture and says what it shows, by classical vision alone: no network judges the networks.

0. A median filter of 3 x 3 pixels takes noise away.
1. The background is the colour (plain or striped) that explains the picture's frame best, in CIELAB.
2. Pixels that differ from it are given to their nearest shape colour; cores of connected pixels are items.
3. Each item's mask is compared with drawn templates of every shape, scaled to the same box, by intersection over union.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from .drawing import CENTRES, Placement, item_mask, stripe_colour
from .scenes import BACKGROUND_COLOURS, RGB, SHAPE_COLOURS, SHAPES, Item, Position, Scene, Texture

FRAME = 8
"""Width of the frame that the background is read from, pixels."""
FOREGROUND_DISTANCE = 17.0
"""CIELAB distance from the background beyond which a pixel belongs to something else."""
SMALLEST_ITEM = 100
"""Pixels in an item's core; smaller things are overlooked."""
CENTRE_REACH = 15.0
"""An item whose box is centred within this many pixels of the middle stands at the centre."""
LEAST_OVERLAP = 0.6
"""Intersection over union below which a shape is not recognised."""
TEMPLATE_SIDE = 48


@dataclass(frozen=True)
class Sighting:
    """What a picture shows.

    Attributes:
        items: from top to bottom, or left to right; a shape that is none of ``SHAPES`` is called "unknown".
        background: one of ``BACKGROUND_COLOURS``.
        texture: plain or striped.
    """

    items: tuple[Item, ...]
    background: str
    texture: Texture


@dataclass(frozen=True)
class Verdict:
    """Which attributes of a picture are as asked for; with the wrong number of items, the first three are wrong.

    Attributes:
        colours: the items have the colours asked for, wherever they stand.
        shapes: the items have the shapes asked for, wherever they stand.
        positions: the items stand where asked for, and are not swapped.
        background: its colour.
        texture: plain or striped.
    """

    colours: bool
    shapes: bool
    positions: bool
    background: bool
    texture: bool

    @property
    def everything(self) -> bool:
        """Whether the picture shows the scene, all in all."""
        return self.colours and self.shapes and self.positions and self.background and self.texture


def to_lab(rgb: npt.ArrayLike) -> np.ndarray:
    """Converts sRGB 0..255, any shape [..., 3], to CIELAB (D65), float64."""
    linear = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _distance_to_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    along = end - start
    length = float(along @ along)
    share = np.clip((points - start) @ along / length, 0, 1)[..., None] if length else 0.0
    return np.linalg.norm(points - (start + share * along), axis=-1)


def find_background(lab: np.ndarray) -> tuple[str, Texture, np.ndarray]:
    """The background's colour and texture, and every pixel's distance from it, float64 [height, width]."""
    frame = np.ones(lab.shape[:2], dtype=bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    pixels = lab[frame]
    best: tuple[float, str] = (np.inf, "")
    for colour in BACKGROUND_COLOURS:
        distance = _distance_to_segment(pixels, to_lab(RGB[colour]), to_lab(stripe_colour(colour)))
        best = min(best, (float(np.minimum(distance, 40).mean()), colour))
    colour = best[1]
    first, second = to_lab(RGB[colour]), to_lab(stripe_colour(colour))
    nearer_second = np.linalg.norm(pixels - second, axis=-1) < np.linalg.norm(pixels - first, axis=-1)
    texture: Texture = "striped" if 0.2 < nearer_second.mean() < 0.8 else "plain"
    if texture == "plain":
        first = second = np.median(pixels, axis=0)
    return colour, texture, _distance_to_segment(lab, first, second)


def _find_cores(lab: np.ndarray, foreground: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Colour and core mask of each item, largest first; opening removes the mixed colours along edges."""
    palette = to_lab(np.array([RGB[colour] for colour in SHAPE_COLOURS]))
    nearest = np.linalg.norm(lab[..., None, :] - palette, axis=-1).argmin(axis=-1)
    cores = []
    for index, colour in enumerate(SHAPE_COLOURS):
        mask = ndimage.binary_opening(foreground & (nearest == index), np.ones((3, 3)))
        labels, count = ndimage.label(mask)
        areas = np.bincount(labels.ravel())
        cores += [(colour, labels == k) for k in range(1, count + 1) if areas[k] >= SMALLEST_ITEM]
    return sorted(cores, key=lambda core: -int(core[1].sum()))


def _normalised(mask: np.ndarray) -> np.ndarray:
    """The mask's box, scaled to 48 x 48 by its longer side and centred; bool."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(box.shape)
    top, left = (side - box.shape[0]) // 2, (side - box.shape[1]) // 2
    square = np.zeros((side, side), dtype=np.uint8)
    square[top : top + box.shape[0], left : left + box.shape[1]] = 255
    square[top : top + box.shape[0], left : left + box.shape[1]] *= box
    return np.asarray(Image.fromarray(square).resize((TEMPLATE_SIDE, TEMPLATE_SIDE), Image.Resampling.BILINEAR)) > 127


@lru_cache(maxsize=1)
def _templates() -> dict[str, np.ndarray]:
    placement = Placement(64, 64, 40)
    return {shape: _normalised(item_mask(Item("red", shape, "centre"), placement) > 0.5) for shape in SHAPES}


def recognise_shape(mask: np.ndarray) -> tuple[str, float]:
    """Names the shape of a mask, bool [height, width], and its intersection over union with that shape's template."""
    seen = _normalised(mask)
    overlaps = {
        shape: float((seen & template).sum() / (seen | template).sum()) for shape, template in _templates().items()
    }
    shape = max(overlaps, key=overlaps.__getitem__)
    return (shape if overlaps[shape] >= LEAST_OVERLAP else "unknown"), overlaps[shape]


def look(picture: np.ndarray) -> Sighting:
    """Says what a picture shows.

    Args:
        picture: uint8 [128, 128, 3].

    Returns:
        Items, background and texture as seen.
    """
    lab = to_lab(ndimage.median_filter(picture, size=(3, 3, 1)))
    background, texture, distance = find_background(lab)
    cores = _find_cores(lab, distance > FOREGROUND_DISTANCE)
    colours = sorted({colour for colour, _ in cores})
    seen_as = {
        c: np.median(np.concatenate([lab[core] for colour, core in cores if colour == c]), axis=0) for c in colours
    }
    owner = np.argmin([distance] + [np.linalg.norm(lab - seen_as[colour], axis=-1) for colour in colours], axis=0)
    found = []
    for colour, core in cores:
        labels, _ = ndimage.label(owner == colours.index(colour) + 1)
        counts = np.bincount(labels[core])
        counts[0] = 0
        mask = labels == counts.argmax() if counts.any() else core
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        middle = ((columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2)
        found.append((colour, recognise_shape(mask)[0], middle))
    return Sighting(_place(found), background, texture)


def _place(found: list[tuple[str, str, tuple[float, float]]]) -> tuple[Item, ...]:
    """Names positions: two items by where they stand to one another, any other number each by itself."""
    if len(found) == 2:
        (_, _, a), (_, _, b) = found
        axis = 0 if abs(a[0] - b[0]) > abs(a[1] - b[1]) else 1
        names: tuple[Position, Position] = ("left", "right") if axis == 0 else ("top", "bottom")
        ordered = sorted(found, key=lambda item: item[2][axis])
        return tuple(Item(colour, shape, name) for (colour, shape, _), name in zip(ordered, names, strict=True))
    return tuple(Item(colour, shape, _position(middle)) for colour, shape, middle in found)


def _position(middle: tuple[float, float]) -> Position:
    x, y = middle[0] - CENTRES["centre"][0], middle[1] - CENTRES["centre"][1]
    if max(abs(x), abs(y)) < CENTRE_REACH:
        return "centre"
    if abs(x) > abs(y):
        return "left" if x < 0 else "right"
    return "top" if y < 0 else "bottom"


def check(picture: np.ndarray, scene: Scene) -> Verdict:
    """Compares a picture with the scene it should show.

    Args:
        picture: uint8 [128, 128, 3].
        scene: what was asked for.

    Returns:
        What is right and what is not.
    """
    return compare(look(picture), scene)


def compare(seen: Sighting, scene: Scene) -> Verdict:
    """Compares what was seen with what was asked for."""
    return Verdict(
        colours=sorted(item.colour for item in seen.items) == sorted(item.colour for item in scene.items),
        shapes=sorted(item.shape for item in seen.items) == sorted(item.shape for item in scene.items),
        positions=_positions_right(seen.items, scene.items),
        background=seen.background == scene.background,
        texture=seen.texture == scene.texture,
    )


def _positions_right(seen: tuple[Item, ...], asked: tuple[Item, ...]) -> bool:
    if [item.position for item in seen] != [item.position for item in asked]:
        return False
    if len(asked) == 1 or (asked[0].colour, asked[0].shape) == (asked[1].colour, asked[1].shape):
        return True

    def likeness(order: tuple[Item, ...]) -> int:
        pairs = zip(seen, order, strict=True)
        return sum((a.colour == b.colour) + (a.shape == b.shape) for a, b in pairs)

    return likeness(asked) > likeness(asked[::-1])
