"""Style scores and the styled checker, on fresh drawings of held-out scenes."""

import numpy as np
import pytest

from swiftdiffusion.export.demo.drawing import draw, sample_layout
from swiftdiffusion.export.demo.lora.checking import check_styled, in_plain_style
from swiftdiffusion.export.demo.lora.recipes import RECIPES
from swiftdiffusion.export.demo.lora.scores import score
from swiftdiffusion.export.demo.scenes import Item, Scene, sample_scene

SCENES = 50

Drawings = list[tuple[Scene, np.ndarray, np.ndarray]]


@pytest.fixture(scope="module", params=list(RECIPES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def drawings(name: str) -> Drawings:
    """Scenes, each drawn plain and styled with the same layout."""
    rng = np.random.default_rng(41)
    found = []
    for _ in range(SCENES):
        scene = sample_scene(rng, held_out=True)
        layout = sample_layout(scene, rng)
        found.append((scene, draw(scene, layout), draw(scene, layout, RECIPES[name].style)))
    return found


def test_plain_drawings_score_low_and_styled_ones_high(name: str, drawings: Drawings) -> None:
    plain = [score(picture, scene, name) for scene, picture, _ in drawings]
    styled = [score(picture, scene, name) for scene, _, picture in drawings]
    assert max(plain) < 0.15
    assert np.mean(styled) > 0.95
    assert np.mean(np.array(styled) > 0.85) >= 0.94


def test_blends_score_in_between(name: str, drawings: Drawings) -> None:
    for scene, plain, styled in drawings[:6]:
        blends = [
            score(((1 - share) * plain + share * styled).astype(np.uint8), scene, name) for share in (0, 0.3, 0.6, 1)
        ]
        assert blends == sorted(blends), scene
        assert 0.03 < blends[1] < 0.5, scene


def test_styled_drawings_are_read_right(name: str, drawings: Drawings) -> None:
    verdicts = [check_styled(styled, scene, RECIPES[name].style) for scene, _, styled in drawings]
    assert np.mean([verdict.everything for verdict in verdicts]) >= 0.95


def test_a_wrong_scene_is_noticed_through_the_style(name: str) -> None:
    rng = np.random.default_rng(3)
    shown = Scene((Item("red", "star", "left"), Item("blue", "ring", "right")), "white")
    swapped = Scene((Item("blue", "star", "left"), Item("red", "ring", "right")), "white")
    other = Scene((Item("red", "cross", "left"), Item("blue", "circle", "right")), "grey")
    picture = draw(shown, sample_layout(shown, rng), RECIPES[name].style)
    assert check_styled(picture, shown, RECIPES[name].style).everything
    assert not check_styled(picture, swapped, RECIPES[name].style).positions
    verdict = check_styled(picture, other, RECIPES[name].style)
    assert not verdict.shapes
    assert not verdict.background


def test_an_empty_picture_has_no_item_style() -> None:
    scene = Scene((Item("red", "star", "centre"),), "white")
    blank = np.full((128, 128, 3), 250, dtype=np.uint8)
    assert score(blank, scene, "outline") == 0
    assert score(blank, scene, "hatched") == 0
    assert in_plain_style(blank, RECIPES["outline"].style).shape == blank.shape
