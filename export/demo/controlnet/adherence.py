"""How closely a picture follows a control image, 0..1, by looking at both; nothing else is known about the scene.

Items are what differs from the background that the picture's frame shows, up to where half of the difference is left:
there the border of a blurred item lies.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..lora.looking import distance_from_background, foreground
from .controls import PALETTES, Kind, inner_edge

TOLERANCE = 1.5
"""Pixels that an edge may be off: its place or one of the eight around it."""
CONTRAST_WINDOW = 9
"""An item's difference from the background is the largest within this square, pixels."""


def item_pixels(picture: np.ndarray) -> np.ndarray:
    """Pixels of a picture, uint8 [128, 128, 3], that belong to items; bool [128, 128]."""
    distance = distance_from_background(picture)
    contrast = ndimage.maximum_filter(distance, CONTRAST_WINDOW)
    return foreground(distance) & (distance > contrast / 2)


def adherence(kind: Kind, picture: np.ndarray, control: np.ndarray) -> float:
    """How closely a picture follows a control.

    Args:
        kind: of the control.
        picture: uint8 [128, 128, 3].
        control: uint8 [128, 128, 3].

    Returns:
        0..1: :func:`edge_agreement` or :func:`region_overlap`.
    """
    items = item_pixels(picture)
    if kind == "edges":
        return edge_agreement(inner_edge(items), control.mean(axis=-1) > 127)
    distances = np.abs(control[..., None, :].astype(np.int16) - PALETTES["layout"]).sum(axis=-1)
    return region_overlap(items, distances.argmin(axis=-1))


def edge_agreement(seen: np.ndarray, asked: np.ndarray) -> float:
    """F1 of edge pixels, each right if there is one of the other map within the tolerance.

    Args:
        seen: bool [height, width].
        asked: the same.

    Returns:
        0..1; 0 where either map has no edges.
    """
    if not seen.any() or not asked.any():
        return 0.0
    precision = float(np.mean(ndimage.distance_transform_edt(~asked)[seen] <= TOLERANCE))
    recall = float(np.mean(ndimage.distance_transform_edt(~seen)[asked] <= TOLERANCE))
    return 2 * precision * recall / max(precision + recall, 1e-9)


def region_overlap(seen: np.ndarray, classes: np.ndarray) -> float:
    """Intersection over union of each connected region asked for with the item pixels nearest to it, averaged.

    Args:
        seen: where the picture shows items, bool [height, width].
        classes: of the control, int [height, width], 0 for background.

    Returns:
        0..1; 0 where nothing is asked for.
    """
    regions = np.zeros(classes.shape, dtype=np.int64)
    count = 0
    for value in np.unique(classes[classes > 0]):
        labels, found = ndimage.label(classes == value, np.ones((3, 3)))
        regions[labels > 0] = labels[labels > 0] + count
        count += found
    if count == 0:
        return 0.0
    nearest = ndimage.distance_transform_edt(regions == 0, return_distances=False, return_indices=True)
    owned = np.where(seen, regions[tuple(nearest)], 0)
    overlaps = [
        np.sum((owned == number) & (regions == number)) / np.sum((owned == number) | (regions == number))
        for number in range(1, count + 1)
    ]
    return float(np.mean(overlaps))
