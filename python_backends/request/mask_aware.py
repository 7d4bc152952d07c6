"""MASK_AWARE of a client request: whether masked tokens alone are computed in most steps, and in which all are.

Needs no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from ..common.errors import InvalidRequestError
from ..common.sentences import shown
from .json_text import adapter

if TYPE_CHECKING:
    from .fields import Fields

EXACT, FAST, BALANCED = "exact", "fast", "balanced"
EVERY = {FAST: 4, BALANCED: 3}
"""Preset → every so manieth step computes all tokens, after the first."""

LEAST_STEPS = 16
"""Fewer steps lie too far apart for a line from one exact step to the next, and presets compute all of them."""

MOST_AREA = 0.5
"""Of the mask, as a share of the picture: with more, hardly any time is saved."""

MOST_CHARACTERS = 4096
Source = Literal["auto", "own"]


@dataclass(frozen=True)
class MaskAware:
    """What was asked for.

    Attributes:
        source: Of what the other tokens become: `own`, a line through what the request's own exact steps gave; `auto`
            is the same, where there are steps enough.
        exact_steps: Those of the steps taken, from 0, that compute all tokens; the first two do in any case.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    source: Source
    exact_steps: tuple[Annotated[int, Field(ge=0)], ...]


def asked_mask_aware(fields: Fields) -> str | MaskAware | None:
    """MASK_AWARE: a preset's name, or what its JSON says; None for `exact`.

    Raises:
        InvalidRequestError: If it is neither.
    """
    text = fields.text("MASK_AWARE", MOST_CHARACTERS)
    if text in (None, EXACT):
        return None
    if text in EVERY:
        return text
    example = {"source": "own", "exact_steps": [0, 1, 5, 9]}
    allowed = f"allowed: {EXACT}, {FAST}, {BALANCED}, or JSON such as {json.dumps(example)}"
    try:
        return adapter(MaskAware).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        said = "is missing" if first["type"] == "missing" else f"is {shown(first.get('input'))}"
        raise InvalidRequestError(f"MASK_AWARE{place} {said}; {allowed}") from None


def mask_aware(asked: str | MaskAware | None, evaluations: int) -> MaskAware | None:
    """What a run of so many steps does.

    Raises:
        InvalidRequestError: If it names steps that the run does not have.
    """
    if asked is None:
        return None
    if isinstance(asked, str):
        return MaskAware("auto", (0, *range(1, evaluations, EVERY[asked])))
    beyond = [step for step in asked.exact_steps if step >= evaluations]
    if beyond:
        raise InvalidRequestError(f"MASK_AWARE.exact_steps has {beyond[0]}; allowed: 0 to {evaluations - 1}")
    return asked
