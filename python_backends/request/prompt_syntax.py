"""The syntax `weighted` of prompts, A1111's: text → sections of weighted fragments. Needs no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..common.errors import InvalidRequestError
from ..common.sentences import shown

PLAIN, WEIGHTED = SYNTAXES = ("plain", "weighted")

EMPHASIS = 1.1
"""What round brackets multiply by, and square ones divide by."""

MOST_WEIGHT = 5.0
"""Weights are at most so far from 0."""

_PIECES = re.compile(
    r"\\(?P<escaped>[\\()\[\]]?)|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|(?P<mark>[()\[\]])"
    r"|(?P<text>[^\\()\[\]:]+|:)"
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True)
class Fragment:
    """A piece of a prompt's text, all of one weight."""

    text: str
    weight: float = 1.0


Section = list[Fragment]
"""What stands between two BREAKs; without two neighbours of one weight."""


def parse_weighted(text: str) -> list[Section]:
    r"""A prompt's sections, at least one; every text is a prompt.

    `(x)` multiplies the weight of what it holds by 1.1, `[x]` divides it by that, `(x:1.3)` multiplies it by 1.3;
    brackets nest and may be left open. `\(`, `\)`, `\[`, `\]` and `\\` are characters, any other backslash is none.
    The word BREAK, in capitals, ends a section, in brackets too. What looks like a weight without a bracket before it
    is text.
    """
    pieces = _Pieces()
    for found in _PIECES.finditer(text):
        weight, mark = found["weight"], found["mark"]
        if found["escaped"] is not None:
            pieces.add(found["escaped"])
        elif weight is not None:
            if not pieces.close("(", float(weight)):
                pieces.add(found[0])
        elif mark is not None:
            if mark in "([":
                pieces.open(mark)
            elif not pieces.close(*(("(", EMPHASIS) if mark == ")" else ("[", 1 / EMPHASIS))):
                pieces.add(mark)
        else:
            for number, part in enumerate(_BREAK.split(found["text"])):
                pieces.add(part, begins_section=number > 0)
    return pieces.sections()


def check_weights(field: str, text: str) -> None:
    """Nothing, if all weights of a prompt are within limits.

    Raises:
        InvalidRequestError: At the first that is not.
    """
    for section in parse_weighted(text):
        for fragment in section:
            if not math.isfinite(fragment.weight) or abs(fragment.weight) > MOST_WEIGHT:
                raise InvalidRequestError(
                    f"{field} gives {shown(fragment.text)} the weight {fragment.weight:g}; "
                    f"allowed: {-MOST_WEIGHT:g} to {MOST_WEIGHT:g}"
                )


class _Pieces:
    """Texts so far, their weights, and where brackets that are open began; the two kinds close independently."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._weights: list[float] = []
        self._first_of_section: set[int] = set()
        self._open: dict[str, list[int]] = {"(": [], "[": []}

    def add(self, text: str, begins_section: bool = False) -> None:
        if begins_section:
            self._first_of_section.add(len(self._texts))
        self._texts.append(text)
        self._weights.append(1.0)

    def open(self, bracket: str) -> None:
        self._open[bracket].append(len(self._texts))

    def close(self, bracket: str, factor: float) -> bool:
        """Weighs what has come since the bracket was opened; whether one was."""
        if not self._open[bracket]:
            return False
        for position in range(self._open[bracket].pop(), len(self._texts)):
            self._weights[position] *= factor
        return True

    def sections(self) -> list[Section]:
        """All, once brackets that are left open are closed."""
        for bracket, factor in (("(", EMPHASIS), ("[", 1 / EMPHASIS)):
            while self.close(bracket, factor):
                pass
        sections: list[Section] = [[]]
        for position, (text, weight) in enumerate(zip(self._texts, self._weights, strict=True)):
            if position in self._first_of_section:
                sections.append([])
            if not text:
                continue
            if sections[-1] and sections[-1][-1].weight == weight:
                text = sections[-1].pop().text + text
            sections[-1].append(Fragment(text, weight))
        return sections
