"""The checker sees what was drawn, and notices what is wrong."""

import dataclasses

import numpy as np
import pytest

from swiftdiffusion.export.demo.checker import check, look, recognise_shape, to_lab
from swiftdiffusion.export.demo.drawing import Placement, draw_random, item_mask
from swiftdiffusion.export.demo.scenes import SHAPES, Item, Scene, sample_scene


def test_every_fresh_drawing_is_read_right() -> None:
    rng = np.random.default_rng(7)
    for _ in range(100):
        scene = sample_scene(rng)
        assert check(draw_random(scene, rng), scene).everything, scene


def test_drawings_are_read_right_through_noise() -> None:
    rng = np.random.default_rng(8)
    right = 0
    for _ in range(40):
        scene = sample_scene(rng)
        noisy = draw_random(scene, rng) + rng.normal(0, 5, (128, 128, 3))
        right += check(np.clip(noisy, 0, 255).astype(np.uint8), scene).everything
    assert right >= 39


SCENE = Scene((Item("red", "circle", "top"), Item("blue", "square", "bottom")), "white")


@pytest.mark.parametrize(
    ("drawn", "wrong"),
    [
        (Scene((Item("red", "circle", "top"), Item("green", "square", "bottom")), "white"), {"colours"}),
        (Scene((Item("red", "circle", "top"), Item("blue", "star", "bottom")), "white"), {"shapes"}),
        (Scene((Item("blue", "square", "top"), Item("red", "circle", "bottom")), "white"), {"positions"}),
        (Scene((Item("red", "circle", "left"), Item("blue", "square", "right")), "white"), {"positions"}),
        (dataclasses.replace(SCENE, background="yellow"), {"background"}),
        (dataclasses.replace(SCENE, texture="striped"), {"texture"}),
        (Scene((Item("red", "circle", "centre"),), "white"), {"colours", "shapes", "positions"}),
    ],
)
def test_each_mistake_is_named(drawn: Scene, wrong: set[str]) -> None:
    verdict = check(draw_random(drawn, np.random.default_rng(0)), SCENE)
    assert {name for name, right in dataclasses.asdict(verdict).items() if not right} == wrong
    assert not verdict.everything


def test_a_picture_of_nothing_shows_no_items() -> None:
    sighting = look(np.full((128, 128, 3), 128, dtype=np.uint8))
    assert sighting.items == ()
    assert (sighting.background, sighting.texture) == ("grey", "plain")


def test_pure_noise_is_no_scene() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert not check(noise, SCENE).everything


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [14, 20, 30])
def test_shapes_are_told_apart_at_any_size(shape: str, radius: int) -> None:
    name, overlap = recognise_shape(item_mask(Item("red", shape, "centre"), Placement(63.3, 64.8, radius)) > 0.5)
    assert name == shape
    assert overlap > 0.85


def test_lab_of_known_colours() -> None:
    lab = to_lab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]]))
    assert np.allclose(lab, [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.2]], atol=0.5)
