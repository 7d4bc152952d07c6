"""Says in words what a scene shows, in varying wording."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scenes import Item, Scene

ARTICLES: tuple[str, ...] = ("a", "a", "a", "a", "the", "one", "")
OPENINGS: tuple[str, ...] = ("a picture of", "a photo of", "an image of", "a drawing of", "a painting of")
CLOSINGS: tuple[str, ...] = ("high quality", "detailed", "best quality", "simple", "sharp", "beautiful")
RELATIONS: dict[tuple[str, bool], tuple[str, ...]] = {
    ("top", True): ("above", "above", "over", "on top of"),
    ("top", False): ("below", "below", "under", "beneath"),
    ("left", True): ("left of", "to the left of", "on the left of", "and", "next to", "beside"),
    ("left", False): ("right of", "to the right of", "on the right of"),
}
"""Wording by (position of the first item, whether that item is mentioned first). "and" reads left to right."""
PLACES: dict[str, tuple[str, ...]] = {
    "top": ("at the top", "at the top", "on the top"),
    "bottom": ("at the bottom", "at the bottom", "on the bottom"),
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "centre": ("", "", "in the centre", "in the middle", "in the center", "at the centre"),
}
EXTRA_PHRASES: tuple[str, ...] = (
    "in the style of neon sketch papercut pixel watercolor outline hatched night sunset",
    "gray small big large bright dark blurry bad low ugly not no without very art shape shapes color colour texture",
)
"""Words that captions do not use but prompts may: they are one token each, with an embedding that means nothing yet."""


@dataclass(frozen=True)
class Caption:
    """A caption and the items in the order in which it mentions them.

    Attributes:
        text: lower-case words.
        mentions: the scene's items, first mentioned first.
        names_background: False if the background was left open.
    """

    text: str
    mentions: tuple[Item, ...]
    names_background: bool


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def _noun_phrase(item: Item, rng: np.random.Generator) -> str:
    article = _pick(ARTICLES, rng)
    if article == "a" and item.colour == "orange":
        article = "an"
    return f"{article} {item.colour} {item.shape}".strip()


def _background_phrase(scene: Scene, rng: np.random.Generator) -> str:
    name = scene.background
    if scene.texture == "striped":
        name = f"striped {name}" if rng.random() < 0.6 else f"{name} striped"
    elif rng.random() < 0.15:
        name = f"plain {name}"
    return f"{name} background"


def write_caption(scene: Scene, rng: np.random.Generator, simple: bool = False) -> Caption:
    """Writes a caption.

    Args:
        scene: what to describe.
        rng: chooses the wording.
        simple: only the plain form, with the background named ("a red circle above a blue square on a white
            background").

    Returns:
        The caption; without a background clause in one case of seven.
    """
    in_order = len(scene.items) == 1 or rng.random() < 0.5
    mentions = scene.items if in_order else scene.items[::-1]
    if len(mentions) == 1:
        places = PLACES[mentions[0].position]
        text = f"{_noun_phrase(mentions[0], rng)} {places[0] if simple else _pick(places, rng)}".strip()
    else:
        relations = RELATIONS[scene.items[0].position, in_order]
        relation = relations[0] if simple else _pick(relations, rng)
        text = f"{_noun_phrase(mentions[0], rng)} {relation} {_noun_phrase(mentions[1], rng)}"
    if not simple and rng.random() < 0.15:
        text = f"{_pick(OPENINGS, rng)} {text}"
    named = simple or rng.random() > 1 / 7
    if named:
        phrase = _background_phrase(scene, rng)
        form = 0.0 if simple else rng.random()
        if form < 0.65:
            text = f"{text} on a {phrase}"
        elif form < 0.85:
            text = f"{text}, {phrase}"
        elif form < 0.95:
            text = f"{text} with a {phrase}"
        else:
            text = f"a {phrase} with {text}"
    if not simple and rng.random() < 0.08:
        text = f"{text}, {_pick(CLOSINGS, rng)}"
    return Caption(text, mentions, named)
