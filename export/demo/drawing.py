"""Draws scenes: 128 x 128 RGB, anti-aliased by supersampling.

A :class:`Layout` fixes the geometry that a scene leaves open, so a picture and the maps made from it (masks, edges for
ControlNets, the same picture in another :class:`Style` for LoRAs) line up pixel by pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from .scenes import RGB, Item, Position, Scene

SIZE = 128
SUPERSAMPLING = 4
STRIPE_PERIOD = 32
STRIPE_SHADE = 0.8
"""Brightness of the dark half of a stripe; on black the stripe is lightened instead."""

CENTRES: dict[Position, tuple[int, int]] = {
    "top": (64, 34),
    "bottom": (64, 94),
    "left": (34, 64),
    "right": (94, 64),
    "centre": (64, 64),
}


@dataclass(frozen=True)
class Placement:
    """Where one item is drawn: centre (x, y) and radius in pixels of a 128-pixel picture, rotation in degrees."""

    x: float
    y: float
    radius: float
    rotation: float = 0.0


@dataclass(frozen=True)
class Layout:
    """The geometry and tint of one drawing of a scene.

    Attributes:
        placements: one per item of the scene.
        stripe_phase: offset of the background's stripes, pixels.
        tint: added to every colour, uint8 units.
    """

    placements: tuple[Placement, ...]
    stripe_phase: float = 0.0
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Style:
    """How items are painted; the default is the family's own style, the others are for LoRAs and the VAE.

    Attributes:
        fill: solid, only the outline, or hatched by diagonal lines.
        line_width: of outline and hatching, pixels.
        between_lines: how much of a hatched item shows between its lines, 0..1.
        gradient: brightness change from the picture's top to its bottom, -1..1.
        colour_matrix: 3 x 3, applied to RGB in 0..1, or None.
    """

    fill: Literal["solid", "outline", "hatched"] = "solid"
    line_width: float = 4.0
    between_lines: float = 0.0
    gradient: float = 0.0
    colour_matrix: tuple[tuple[float, float, float], ...] | None = None


PLAIN_STYLE = Style()


def sample_layout(scene: Scene, rng: np.random.Generator) -> Layout:
    """Draws positions (within 4 px of the nominal ones), sizes, stripe phase and a faint tint."""
    lowest, highest = (22.0, 28.0) if len(scene.items) == 1 else (19.0, 23.0)
    placements = []
    for item in scene.items:
        x, y = CENTRES[item.position]
        dx, dy = rng.uniform(-4, 4, size=2)
        placements.append(Placement(x + dx, y + dy, rng.uniform(lowest, highest)))
    tint = rng.uniform(-5, 5, size=3)
    return Layout(tuple(placements), float(rng.uniform(0, STRIPE_PERIOD)), (tint[0], tint[1], tint[2]))


def shape_outline(shape: str, radius: float) -> np.ndarray:
    """Corner points of a shape around the origin (circle and ring: their outer circle).

    Args:
        shape: one of ``SHAPES``.
        radius: pixels.

    Returns:
        float64 [points, 2], x to the right, y down.
    """
    if shape in ("circle", "ring"):
        angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if shape == "square":
        half = 0.86 * radius
        return np.array([(-half, -half), (half, -half), (half, half), (-half, half)])
    if shape == "triangle":
        return radius * np.array([(0.0, -1.0), (1.08, 0.85), (-1.08, 0.85)])
    if shape == "star":
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.15, 0.46) * radius
        return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if shape == "cross":
        arm, reach = 0.34 * radius, 1.02 * radius
        quarter = np.array([(arm, -reach), (arm, -arm), (reach, -arm), (reach, arm)])
        rotate = np.array([[0.0, 1.0], [-1.0, 0.0]])
        return np.concatenate([quarter[1:] @ np.linalg.matrix_power(rotate, k) for k in range(4)])
    raise ValueError(f"unknown shape {shape!r}")


def item_mask(item: Item, placement: Placement, style: Style = PLAIN_STYLE, size: int = SIZE) -> np.ndarray:
    """How much of each pixel an item covers.

    Args:
        item: what to draw.
        placement: where.
        style: solid, outline or hatched.
        size: side of the picture, pixels.

    Returns:
        float32 [size, size], 0..1.
    """
    scale = SUPERSAMPLING * size / SIZE
    side = size * SUPERSAMPLING
    angle = np.deg2rad(placement.rotation)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = np.array([placement.x, placement.y])
    corners = (shape_outline(item.shape, placement.radius) @ turn + centre) * scale
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    points = [tuple(point) for point in corners]
    width = max(1, round(style.line_width * scale))
    if style.fill == "outline":
        pen.line([*points, points[0], points[1]], fill=255, width=width, joint="curve")
    else:
        pen.polygon(points, fill=255)
    if item.shape == "ring":
        hole = (shape_outline("circle", 0.52 * placement.radius) + centre) * scale
        if style.fill == "outline":
            pen.line([tuple(point) for point in [*hole, hole[0], hole[1]]], fill=255, width=width, joint="curve")
        else:
            pen.polygon([tuple(point) for point in hole], fill=0)
    coverage = np.asarray(mask.reduce(SUPERSAMPLING), dtype=np.float32) / 255
    if style.fill == "hatched":
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) * (SIZE / size)
        lines = np.clip(2.5 * np.sin((x + y) * np.pi / style.line_width) + 0.5, 0, 1)
        coverage = coverage * (style.between_lines + (1 - style.between_lines) * lines)
    return coverage


def draw(scene: Scene, layout: Layout, style: Style = PLAIN_STYLE, size: int = SIZE) -> np.ndarray:
    """Draws a scene.

    Args:
        scene: what to draw.
        layout: its geometry and tint.
        style: how to paint it.
        size: side of the picture, pixels.

    Returns:
        uint8 [size, size, 3], RGB.
    """
    tint = np.array(layout.tint, dtype=np.float32)
    canvas = _background(scene, layout, size) + tint
    for item, placement in zip(scene.items, layout.placements, strict=True):
        coverage = item_mask(item, placement, style, size)[..., None]
        canvas += coverage * (np.array(RGB[item.colour], dtype=np.float32) + tint - canvas)
    if style.gradient:
        canvas *= 1 + style.gradient * np.linspace(-0.5, 0.5, size, dtype=np.float32)[:, None, None]
    if style.colour_matrix is not None:
        canvas = canvas @ np.array(style.colour_matrix, dtype=np.float32).T
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def stripe_colour(colour: str) -> np.ndarray:
    """The second colour of a striped background, float32 [3], 0..255."""
    first = np.array(RGB[colour], dtype=np.float32)
    return first + 45 if first.max() < 60 else first * STRIPE_SHADE


def _background(scene: Scene, layout: Layout, size: int) -> np.ndarray:
    first = np.array(RGB[scene.background], dtype=np.float32)
    canvas = np.broadcast_to(first, (size, size, 3)).copy()
    if scene.texture == "striped":
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) * (SIZE / size)
        wave = np.sin((x + y + layout.stripe_phase) * 2 * np.pi / STRIPE_PERIOD)
        share = np.clip(wave * STRIPE_PERIOD / 9 + 0.5, 0, 1)[..., None]
        canvas += share * (stripe_colour(scene.background) - first)
    return canvas


def draw_random(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draws a scene with a random layout in the family's own style, uint8 [128, 128, 3]."""
    return draw(scene, sample_layout(scene, rng))
