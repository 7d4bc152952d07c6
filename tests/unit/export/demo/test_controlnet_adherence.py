"""Control images line up with drawings, and adherence tells pictures that follow them from pictures that do not."""

import dataclasses

import numpy as np
import pytest

from swiftdiffusion.export.demo.checker import check
from swiftdiffusion.export.demo.controlnet.adherence import adherence, edge_agreement, item_pixels, region_overlap
from swiftdiffusion.export.demo.controlnet.controls import (
    KINDS,
    PALETTES,
    SEGMENT_COLOURS,
    Kind,
    control_image,
    sample_control_layout,
)
from swiftdiffusion.export.demo.drawing import Layout, Placement, draw, sample_layout
from swiftdiffusion.export.demo.scenes import Item, Scene, sample_scene

SCENES = 40
SCENE = Scene((Item("red", "circle", "left"), Item("blue", "square", "right")), "white")

Drawn = list[tuple[Scene, Layout]]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    rng = np.random.default_rng(51)
    scenes = [sample_scene(rng) for _ in range(SCENES)]
    return [(scene, sample_control_layout(scene, rng)) for scene in scenes]


@pytest.mark.parametrize("kind", KINDS)
def test_true_drawings_follow_their_control(drawn: Drawn, kind: Kind) -> None:
    scores = [adherence(kind, draw(*one), control_image(kind, *one)) for one in drawn]
    assert min(scores) > 0.85
    assert np.mean(scores) > 0.97


@pytest.mark.parametrize(("kind", "highest_mean"), [("edges", 0.45), ("layout", 0.65)])
def test_other_layouts_of_the_same_scenes_do_not(drawn: Drawn, kind: Kind, highest_mean: float) -> None:
    rng = np.random.default_rng(52)
    for sample in (sample_control_layout, sample_layout):
        others = [draw(scene, sample(scene, rng)) for scene, _ in drawn]
        scores = [adherence(kind, other, control_image(kind, *one)) for other, one in zip(others, drawn, strict=True)]
        assert np.mean(scores) < highest_mean
        assert np.mean(np.array(scores) > 0.9) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_adherence_falls_with_the_distance(kind: Kind) -> None:
    control = control_image(kind, SCENE, Layout((Placement(34, 64, 20), Placement(94, 64, 20))))
    pictures = [
        draw(SCENE, Layout((Placement(34, 64 + off, 20), Placement(94, 64 + off, 20)))) for off in (0, 3, 6, 12)
    ]
    scores = [adherence(kind, picture, control) for picture in pictures]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.95
    assert scores[-1] < 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_empty_pictures_and_missing_items_score_low(kind: Kind) -> None:
    layout = Layout((Placement(34, 64, 20), Placement(94, 64, 20)))
    control = control_image(kind, SCENE, layout)
    blank = np.full((128, 128, 3), 250, dtype=np.uint8)
    assert adherence(kind, blank, control) == 0
    one = draw(Scene(SCENE.items[:1], "white"), Layout(layout.placements[:1]))
    assert adherence(kind, one, control) < 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_controls_say_nothing_about_colours(drawn: Drawn, kind: Kind) -> None:
    for scene, layout in drawn[:10]:
        items = tuple(dataclasses.replace(item, colour="purple") for item in scene.items)
        other = Scene(items, "white", "striped")
        assert np.array_equal(control_image(kind, scene, layout), control_image(kind, other, layout))


def test_control_images_have_the_pictures_size_and_the_palettes_colours() -> None:
    layout = Layout((Placement(34, 64, 20), Placement(94, 64, 20)))
    for kind in KINDS:
        image = control_image(kind, SCENE, layout, size=64)
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        assert {tuple(colour) for colour in image.reshape(-1, 3)} <= {tuple(colour) for colour in PALETTES[kind]}
    layout_image = control_image("layout", SCENE, layout)
    assert tuple(layout_image[64, 34]) == SEGMENT_COLOURS["circle"]
    assert tuple(layout_image[64, 94]) == SEGMENT_COLOURS["square"]
    assert not layout_image[64, 64].any()


def test_varied_layouts_still_show_the_scene(drawn: Drawn) -> None:
    assert np.mean([check(draw(*one), one[0]).everything for one in drawn]) >= 0.95


def test_items_are_found_up_to_their_border_on_any_background(drawn: Drawn) -> None:
    for scene, layout in drawn:
        found = item_pixels(draw(scene, layout))
        true = control_image("layout", scene, layout).any(axis=-1)
        assert (found & true).sum() / (found | true).sum() > 0.85, scene


def test_scores_of_maps_by_hand() -> None:
    asked = np.zeros((20, 20), dtype=bool)
    asked[5, :] = True
    assert edge_agreement(np.roll(asked, 1, axis=0), asked) == 1
    assert edge_agreement(np.roll(asked, 2, axis=0), asked) == 0
    doubled = asked | np.roll(asked, 8, axis=0)
    assert edge_agreement(doubled, asked) == pytest.approx(2 / 3)
    classes = np.zeros((20, 20), dtype=np.int64)
    classes[:, :5], classes[:, 15:] = 1, 2
    seen = np.zeros((20, 20), dtype=bool)
    seen[:, :5] = True
    assert region_overlap(seen, classes) == 0.5
    seen[:, 15:] = True
    seen[:, 13:15] = True
    assert region_overlap(seen, classes) == pytest.approx((1 + 5 / 7) / 2)
    assert region_overlap(seen, np.zeros_like(classes)) == 0
