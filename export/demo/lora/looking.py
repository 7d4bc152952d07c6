"""What the judges of styles share: where a picture's items are, and how much each pixel differs from the background."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..checker import FOREGROUND_DISTANCE, find_background, to_lab
from ..drawing import CENTRES, SIZE, Placement, Style, item_mask, shape_outline
from ..scenes import Item, Scene

SMALLEST_RADIUS = 8.0
"""Items with a smaller one, pixels, are taken for specks."""


def distance_from_background(picture: np.ndarray) -> np.ndarray:
    """CIELAB distance of every pixel, uint8 [128, 128, 3], from what the frame shows; float64 [128, 128]."""
    return find_background(to_lab(picture))[2]


def foreground(distance: np.ndarray, least: float = FOREGROUND_DISTANCE) -> np.ndarray:
    """Pixels at least so far from the background, specks left out; bool [128, 128]."""
    return ndimage.binary_opening(distance > least, np.ones((2, 2)))


def brightness_of_rows(style: Style, size: int = SIZE) -> np.ndarray:
    """The factor by which a style's gradient multiplies each row, float32 [size]."""
    return 1 + style.gradient * np.linspace(-0.5, 0.5, size, dtype=np.float32)


def without_palette(picture: np.ndarray, style: Style) -> np.ndarray:
    """Takes a style's colour matrix and gradient back.

    Args:
        picture: uint8 [128, 128, 3], in the style.
        style: its colour matrix must be invertible.

    Returns:
        uint8 [128, 128, 3].
    """
    colours = picture.astype(np.float32)
    if style.colour_matrix is not None:
        colours = colours @ np.linalg.inv(np.array(style.colour_matrix, dtype=np.float32)).T
    colours /= brightness_of_rows(style)[:, None, None]
    return np.clip(colours + 0.5, 0, 255).astype(np.uint8)


def territory(item: Item, alone: bool) -> np.ndarray:
    """The part of the picture that belongs to an item: all of it, or the half on the item's side; bool [128, 128]."""
    if alone:
        return np.ones((SIZE, SIZE), dtype=bool)
    x, y = CENTRES[item.position]
    half = np.zeros((SIZE, SIZE), dtype=bool)
    rows = slice(None) if y == SIZE // 2 else slice(0, SIZE // 2) if y < SIZE // 2 else slice(SIZE // 2, None)
    columns = slice(None) if x == SIZE // 2 else slice(0, SIZE // 2) if x < SIZE // 2 else slice(SIZE // 2, None)
    half[rows, columns] = True
    return half


def solid_masks(distance: np.ndarray, scene: Scene, overhang: float = 0.0) -> list[np.ndarray]:
    """Where a scene's items would be if they were solid, from the box of whatever is seen in their place.

    Args:
        distance: from the background, [128, 128].
        scene: which shapes to expect.
        overhang: by how much the items may be drawn larger than they are, pixels: half the width of an outline.

    Returns:
        bool [128, 128] per item of which anything is seen.
    """
    seen = foreground(distance)
    masks = []
    for item in scene.items:
        own = seen & territory(item, alone=len(scene.items) == 1)
        if own.sum() < 40:
            continue
        rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
        low, high = shape_outline(item.shape, 1.0).min(axis=0), shape_outline(item.shape, 1.0).max(axis=0)
        box = np.array([columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1])
        radius = float(((box - 2 * overhang) / (high - low)).mean())
        if radius < SMALLEST_RADIUS:
            continue
        x, y = np.array([columns[0], rows[0]]) + box / 2 - radius * (low + high) / 2
        masks.append(item_mask(item, Placement(x, y, radius)) > 0.5)
    return masks
