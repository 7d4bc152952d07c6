"""Whether a picture in a LoRA's style shows what was asked for: the style is taken back, then the checker looks."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..checker import Verdict, check
from ..drawing import PLAIN_STYLE, Style
from ..scenes import Scene
from .looking import distance_from_background, foreground, without_palette

FAINT_DISTANCE = 9.0
"""CIELAB distance from the background beyond which a pixel belongs to an item, or to what shows between its lines."""
STRONGEST = 60
"""The colour of a stroke is the median of its pixels above this percentile of the distance from the background."""


def check_styled(picture: np.ndarray, scene: Scene, style: Style) -> Verdict:
    """Compares a picture in a style with the scene it should show.

    Args:
        picture: uint8 [128, 128, 3].
        scene: what was asked for.
        style: in which the picture is taken to be.

    Returns:
        What is right and what is not, as :func:`..checker.check`.
    """
    return check(in_plain_style(picture, style), scene)


def in_plain_style(picture: np.ndarray, style: Style) -> np.ndarray:
    """Takes a style back: inverts the palette, fills outlines and hatching.

    Args:
        picture: uint8 [128, 128, 3], in the style.
        style: the style.

    Returns:
        uint8 [128, 128, 3].
    """
    if style == PLAIN_STYLE:
        return picture
    picture = without_palette(picture, style)
    if style.fill == "outline":
        return _fill_outlines(picture, style.line_width)
    if style.fill == "hatched":
        return _fill_hatching(picture)
    return picture


def _fill_outlines(picture: np.ndarray, line_width: float) -> np.ndarray:
    """Paints what strokes enclose, up to their middle; a stroke inside another one bounds a hole, as in a ring."""
    distance = distance_from_background(picture)
    strokes = ndimage.binary_closing(foreground(distance), np.ones((3, 3)))
    labels, count = ndimage.label(strokes, np.ones((3, 3)))
    apart = [labels == number for number in range(1, count + 1)]
    pairs = [(stroke, ndimage.binary_fill_holes(stroke)) for stroke in apart]
    depth = np.sum([inside for _, inside in pairs], axis=0) if pairs else np.zeros(strokes.shape)
    solid = ndimage.distance_transform_edt((depth % 2 == 1) | strokes) >= line_width / 2
    around = ndimage.binary_dilation(strokes, iterations=2)
    nearest = ndimage.distance_transform_edt(around, return_distances=False, return_indices=True)
    filled = picture[tuple(nearest)]
    for stroke, inside in sorted(pairs, key=lambda pair: -int(pair[1].sum())):
        strong = stroke & (distance >= np.percentile(distance[stroke], STRONGEST))
        filled[inside & solid] = np.median(picture[strong], axis=0)
    return filled


def _fill_hatching(picture: np.ndarray) -> np.ndarray:
    """Paints each item, lines and what shows between them, in the colour of its lines."""
    distance = distance_from_background(picture)
    labels, count = ndimage.label(foreground(distance, FAINT_DISTANCE), np.ones((3, 3)))
    filled = picture.copy()
    for number in range(1, count + 1):
        item = labels == number
        strong = item & (distance >= np.percentile(distance[item], STRONGEST))
        filled[item] = np.median(picture[strong], axis=0)
    return filled
