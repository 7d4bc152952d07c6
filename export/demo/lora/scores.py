"""How strongly a picture shows a LoRA's style: 0 in the family's own style, 1 in the LoRA's.

Every score looks at the picture alone and knows only which scene was asked for. Pictures blended from both styles score
what their share of the style is.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..drawing import Style, stripe_colour
from ..scenes import RGB, Scene
from .looking import brightness_of_rows, distance_from_background, solid_masks
from .recipes import RECIPES

CLEARANCE = 1.5
"""Pixels from an outline's inner border beyond which the background should show."""
BLENDS = np.linspace(0, 1, 41)
STRIDE = 4
"""Colours are compared at one pixel in so many, both ways."""
FARTHEST = 60.0
"""RGB distance at which a pixel is explained by none of a scene's colours; it counts no more than that."""


def score(picture: np.ndarray, scene: Scene, name: str) -> float:
    """How strongly a picture shows the style of one of the family's LoRAs.

    Args:
        picture: uint8 [128, 128, 3].
        scene: what was asked for.
        name: of the LoRA.

    Returns:
        0..1.
    """
    return style_score(picture, scene, RECIPES[name].style)


def style_score(picture: np.ndarray, scene: Scene, style: Style) -> float:
    """How strongly a picture shows a style: by its fill if that is not solid, else by its colours.

    Args:
        picture: uint8 [128, 128, 3].
        scene: what was asked for.
        style: to look for.

    Returns:
        0..1.
    """
    if style.fill == "outline":
        return outline_score(picture, scene, style)
    if style.fill == "hatched":
        return hatching_score(picture, scene, style)
    return palette_score(picture, scene, style)


def outline_score(picture: np.ndarray, scene: Scene, style: Style) -> float:
    """How much of the background shows inside the items, against their edges; 0..1."""
    distance = distance_from_background(picture)
    scores = []
    for mask in solid_masks(distance, scene, style.line_width / 2):
        depth = ndimage.distance_transform_edt(mask)
        inner = depth >= min(style.line_width / 2 + CLEARANCE, 0.9 * depth.max())
        ink = np.percentile(distance[ndimage.binary_dilation(mask, iterations=3)], 85)
        scores.append(1 - float(np.median(distance[inner])) / max(ink, 1e-6))
    return float(np.clip(np.mean(scores), 0, 1)) if scores else 0.0


def hatching_score(picture: np.ndarray, scene: Scene, style: Style) -> float:
    """The contrast of diagonal lines inside the items, at the style's distance and whatever phase fits best; 0..1."""
    distance = distance_from_background(picture)
    y, x = np.mgrid[0 : len(distance), 0 : len(distance)]
    period = 2 * style.line_width
    scores = []
    for mask in solid_masks(distance, scene):
        inside = ndimage.binary_erosion(mask, iterations=2)
        if inside.sum() < 40:
            continue
        phase = np.exp(1j * (x + y)[inside] * 2 * np.pi / period)
        wave = distance[inside]
        angle = np.angle(np.sum((wave - wave.mean()) * phase.conj()))
        ripple = np.real(phase * np.exp(1j * angle))
        on, off = (float(np.mean(wave[part])) if part.any() else 0.0 for part in (ripple > 0.6, ripple < -0.6))
        scores.append((1 - off / max(on, 1e-6)) / (1 - style.between_lines))
    return float(np.clip(np.mean(scores), 0, 1)) if scores else 0.0


def palette_score(picture: np.ndarray, scene: Scene, style: Style) -> float:
    """The blend of plain and styled colours of the scene that explains the pixels best; 0..1."""
    pixels = picture[::STRIDE, ::STRIDE].astype(np.float32)
    ground = np.array(RGB[scene.background], dtype=np.float32)
    ranges = [(ground, stripe_colour(scene.background) if scene.texture == "striped" else ground)]
    ranges += [(colour, colour) for colour in (np.array(RGB[item.colour], dtype=np.float32) for item in scene.items)]
    rows = brightness_of_rows(style)[::STRIDE, None]
    matrix = np.eye(3, dtype=np.float32) if style.colour_matrix is None else np.array(style.colour_matrix, np.float32)

    def unexplained(blend: float) -> float:
        distances = []
        for ends in ranges:
            styled = (np.clip((rows * end) @ matrix.T, 0, 255) for end in ends)
            first, second = ((1 - blend) * end + blend * new for end, new in zip(ends, styled, strict=True))
            distances.append(_distance_to_segments(pixels, first[:, None], second[:, None]))
        return float(np.minimum(np.min(distances, axis=0), FARTHEST).mean())

    return float(min(BLENDS, key=unexplained))


def _distance_to_segments(points: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distance of points, [rows, columns, 3], to their row's line between two colours, each [rows, 1, 3]."""
    along = second - first
    share = ((points - first) * along).sum(axis=-1) / np.maximum((along**2).sum(axis=-1), 1e-6)
    return np.linalg.norm(points - first - np.clip(share, 0, 1)[..., None] * along, axis=-1)
