"""MASK_AWARE of a client request: whether masked tokens alone are computed in most steps, and in which all are.

Needs no torch.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import numpy as np
from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError

from ..common.errors import InvalidRequestError
from ..common.sentences import shown
from .json_text import adapter

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from .fields import Fields

EXACT = "exact"
Preset = Literal["fast", "balanced"]
EVERY: dict[Preset, int] = {"fast": 4, "balanced": 3}
"""Preset → every so manieth step computes all tokens, after the first, where the request's own steps are gone by."""

EARLY: dict[Preset, tuple[float, ...]] = {"fast": (), "balanced": (0.25, 0.75)}
"""Preset → where in the run all tokens are computed beside its middle and its end, where a template is gone by."""

LEAST_STEPS = 16
"""Fewer steps lie too far apart for a line from one exact step to the next, and presets compute all of them."""

ENOUGH = 0.75
"""Of the steps to come that are known: with fewer, a run that may choose goes by its own steps."""

MOST_AREA = 0.5
"""Of the mask, as a share of the picture: with more, hardly any time is saved."""

PARTS, LEVELS = 16, 8
"""A level's tokens are padded to a multiple of a sixteenth of them: rows of one shape share a call. And more levels
than UNets have."""

MOST_CHARACTERS = 4096
Source = Literal["auto", "template", "own"]

PRESETS = ", ".join(EVERY)
EXAMPLE = {"source": "own", "exact_steps": [0, 1, 5, 9]}
ALLOWED = f"{EXACT}, {PRESETS}, or JSON such as {json.dumps(EXAMPLE)}"
ALLOWED_OF_KEYS = {"source": ", ".join(get_args(Source)), "exact_steps": f"{PRESETS}, or a list of steps from 0"}
"""What messages say is allowed: of the whole text, and of each key of its JSON."""


@dataclass(frozen=True)
class MaskAware:
    """What was asked for.

    Attributes:
        source: Of what the other tokens become: `template`, what is known of the picture from requests before, and how
            far this one is from it; `own`, a line through what the request's own exact steps gave; `auto` is the
            former where enough is known, else the latter, where there are steps enough.
        exact_steps: Those of the steps taken, from 0, that compute all tokens, or the preset that names them; of source
            `own` the first two do in any case.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    source: Source
    exact_steps: Annotated[
        Annotated[Preset, Tag("preset")] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Tag("steps")],
        Discriminator(lambda given: "preset" if isinstance(given, str) else "steps"),
    ]

    def exact(self, source: Literal["template", "own"], steps: int) -> frozenset[int]:
        """Steps of so many that are to compute all tokens, where these are gone by."""
        if not isinstance(self.exact_steps, str):
            return frozenset(self.exact_steps)
        if source == "own":
            return frozenset((0, *range(1, steps, EVERY[self.exact_steps])))
        return frozenset((*(int(share * steps) for share in EARLY[self.exact_steps]), steps // 2, steps - 1))

    def masked_steps(self, steps: int) -> int:
        """Those of so many in which tokens are left out whatever is known of the picture; 0 where that decides."""
        own = len(set(range(steps)) - {0, 1} - self.exact("own", steps))
        if self.source == "own":
            return own
        if self.source == "template" or steps < LEAST_STEPS:
            return 0
        tried = 1  # step, of what other prompts left
        return max(0, min(own, math.ceil(ENOUGH * steps) - len(self.exact("template", steps)) - tried))


def parts_of(mask: np.ndarray) -> tuple[int, ...]:
    """Masked tokens of every level, from the finest, in `PARTS` of all, rounded up. One is if any of its cells is.

    Args:
        mask: [h, w], above 0 where latents are masked.
    """
    inside, parts = mask > 0, []
    for _ in range(LEVELS):
        parts.append(-(-PARTS * int(inside.sum()) // inside.size))
        height, width = inside.shape
        even = np.pad(inside, ((0, height % 2), (0, width % 2)))
        inside = even.reshape(-(-height // 2), 2, -(-width // 2), 2).any((1, 3))
    return tuple(parts)


def asked_mask_aware(fields: Fields) -> MaskAware | None:
    """MASK_AWARE: what a preset is, or its JSON says; None for `exact`.

    Raises:
        InvalidRequestError: If it is neither.
    """
    text = fields.text("MASK_AWARE", MOST_CHARACTERS)
    if text in (None, EXACT):
        return None
    for preset in EVERY:
        if text == preset:
            return MaskAware("auto", preset)
    try:
        return adapter(MaskAware).validate_json(text)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False)
        first = min(wrong, key=lambda each: each["type"] == "missing")  # a key that is misspelt lacks another one
        raise InvalidRequestError(_mistake(text, first)) from None


def _mistake(text: str, first: ErrorDetails) -> str:
    """What is wrong with MASK_AWARE's JSON, and what is allowed there."""
    if not first["loc"]:
        is_meant = first["type"] == "json_invalid" and text.lstrip()[:1] in ("{", "[")
        why = f", which is not JSON ({first['msg']})" if is_meant else ""
        return f"MASK_AWARE is {shown(text)}{why}; allowed: {ALLOWED}"
    key = str(first["loc"][0])
    if key not in ALLOWED_OF_KEYS:
        return f"MASK_AWARE has the key {shown(key)}; allowed: {', '.join(ALLOWED_OF_KEYS)}"
    place = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
    said = "is missing" if first["type"] == "missing" else f"is {shown(first.get('input'))}"
    return f"MASK_AWARE.{key}{place} {said}; allowed: {ALLOWED_OF_KEYS[key]}"


def check_steps(asked: MaskAware | None, evaluations: int, steps: int, strength: float) -> None:
    """Refuses exact steps that a run does not have.

    Args:
        asked: With the steps.
        evaluations: Of the UNet, of the run.
        steps: The request's.
        strength: The request's.

    Raises:
        InvalidRequestError: With the step and what is allowed.
    """
    if asked is None or isinstance(asked.exact_steps, str):
        return
    beyond = [step for step in asked.exact_steps if step >= evaluations]
    if beyond:
        raise InvalidRequestError(
            f"MASK_AWARE.exact_steps has {beyond[0]}; allowed: 0 to {evaluations - 1}: "
            f"STRENGTH {strength:g} of {steps} STEPS makes {evaluations}"
        )
