"""The demo's scenes, drawings and captions say the same thing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftdiffusion.export.demo.captions import write_caption
from swiftdiffusion.export.demo.drawing import (
    CENTRES,
    SIZE,
    Layout,
    Placement,
    Style,
    draw,
    draw_random,
    item_mask,
    sample_layout,
)
from swiftdiffusion.export.demo.prompts import held_out_prompts
from swiftdiffusion.export.demo.scenes import RGB, SHAPES, Item, Scene, is_held_out, sample_scene

seeds = st.integers(0, 2**32 - 1)


@given(seeds)
@settings(max_examples=100)
def test_captions_name_what_the_scene_holds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    caption = write_caption(scene, rng)
    nouns = [f"{item.colour} {item.shape}" for item in caption.mentions]
    places = [caption.text.index(noun) for noun in nouns]
    assert sorted(caption.mentions, key=str) == sorted(scene.items, key=str)
    assert places == sorted(places)
    assert caption.names_background == ("background" in caption.text)
    if caption.names_background:
        assert scene.background in caption.text
        assert ("striped" in caption.text) == (scene.texture == "striped")


@given(seeds)
@settings(max_examples=20)
def test_drawings_are_reproducible_and_fill_the_picture(seed: int) -> None:
    scene = sample_scene(np.random.default_rng(seed))
    first, second = (draw_random(scene, np.random.default_rng(seed)) for _ in range(2))
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)


@pytest.mark.parametrize("shape", SHAPES)
def test_items_have_their_colour_and_smooth_edges(shape: str) -> None:
    scene = Scene((Item("blue", shape, "left"),), "white")
    placement = Placement(*CENTRES["left"], radius=24)
    picture = draw(scene, Layout((placement,)))
    coverage = item_mask(scene.items[0], placement)
    assert (picture[coverage == 1] == RGB["blue"]).all()
    assert (picture[coverage == 0] == RGB["white"]).all()
    assert 0.005 < ((coverage > 0) & (coverage < 1)).mean() < 0.08
    assert coverage[:, SIZE // 2 + 2 :].max() == 0


def test_shapes_differ_in_what_they_cover() -> None:
    masks = [item_mask(Item("red", shape, "centre"), Placement(64, 64, 24)) > 0.5 for shape in SHAPES]
    for index, mask in enumerate(masks):
        for other in masks[index + 1 :]:
            assert (mask & other).sum() / (mask | other).sum() < 0.85


def test_styles_keep_the_layout() -> None:
    rng = np.random.default_rng(0)
    scene = sample_scene(rng)
    layout = sample_layout(scene, rng)
    solid = item_mask(scene.items[0], layout.placements[0])
    hatched = item_mask(scene.items[0], layout.placements[0], Style(fill="hatched"))
    assert (hatched <= solid).all()
    assert 0.2 < hatched.sum() / solid.sum() < 0.8


def test_held_out_arrangements_are_one_in_ten_whatever_the_background() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(2000)]
    assert 0.07 < np.mean([is_held_out(scene) for scene in scenes]) < 0.13
    item = Item("red", "circle", "top")
    assert len({is_held_out(Scene((item,), background)) for background in ("white", "black", "grey")}) == 1
    assert not any(is_held_out(sample_scene(rng, held_out=False)) for _ in range(200))


def test_held_out_prompts_are_a_fixed_list() -> None:
    prompts = held_out_prompts(20)
    assert prompts[:10] == held_out_prompts(10)
    assert all(is_held_out(prompt.scene) and "background" in prompt.text for prompt in prompts)


@pytest.mark.parametrize(
    ("items", "background"),
    [
        ((Item("pink", "star", "top"),), "pink"),
        ((Item("red", "star", "top"), Item("blue", "ring", "left")), "white"),
        ((), "white"),
    ],
)
def test_impossible_scenes_are_refused(items: tuple[Item, ...], background: str) -> None:
    with pytest.raises(ValueError, match=r"items stand at|cannot be seen"):
        Scene(items, background)
