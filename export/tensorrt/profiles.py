"""The shapes that engines are built for, from rows and the latents' size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .graph import GraphError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...python_backends.tensorrt.metadata import Bounds, Shape


@dataclass(frozen=True)
class Rows:
    """Batch sizes of one optimisation profile: equal for an engine tuned to one."""

    least: int
    best: int
    most: int

    @property
    def all(self) -> tuple[int, int, int]:
        """Smallest, best, largest."""
        return self.least, self.best, self.most


def parse_rows(text: str) -> tuple[Rows, ...]:
    """Profiles from texts such as `1,2`, one each, or `1:2:8`, one from 1 to 8 that is best at 2.

    Raises:
        ValueError: If the text is something else.
    """
    profiles = []
    for part in text.split(","):
        if not re.fullmatch(r"\d{1,4}(:\d{1,4}:\d{1,4})?", part):
            raise ValueError(f"rows are {text!r}; allowed: numbers and least:best:most, such as 1,2 or 1:2:8")
        numbers = [int(number) for number in part.split(":")]
        least, best, most = numbers if len(numbers) == 3 else 3 * numbers
        if not 1 <= least <= best <= most:
            raise ValueError(f"rows are {text!r}; allowed: 1 ≤ least ≤ best ≤ most")
        profiles.append(Rows(least, best, most))
    return tuple(profiles)


def parse_latents(text: str) -> tuple[int, int]:
    """(height, width) from texts such as `128x128`.

    Raises:
        ValueError: If the text is something else.
    """
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not found:
        raise ValueError(f"latents are {text!r}; allowed: height and width in latent cells, such as 128x128")
    return int(found[1]), int(found[2])


def input_shapes(
    inputs: Mapping[str, tuple[int | str, ...]],
    rows: int,
    latents: tuple[int, int] | None,
    known: Mapping[str, Shape] | None = None,
) -> dict[str, Shape]:
    """Shapes of a network's inputs for so many rows.

    Args:
        inputs: Input → shape, with names for dimensions that vary.
        rows: The first dimension of each input.
        latents: (height, width) of every other input of four dimensions; None if the file fixes them.
        known: Shapes that are known otherwise: a decoder half's, from its encoder.

    Raises:
        GraphError: If a dimension stays open, or the file fixes it to another size.
    """
    shapes = {}
    for name, dimensions in inputs.items():
        if known and name in known:
            wanted: dict[int, int] = dict(enumerate(known[name]))
        else:
            wanted = {0: rows}
            if len(dimensions) == 4 and latents is not None:
                wanted |= {2: latents[0], 3: latents[1]}
        shapes[name] = tuple(_size(name, dimensions, index, wanted.get(index)) for index in range(len(dimensions)))
    return shapes


def profile(of_rows: Mapping[int, Mapping[str, Shape]], rows: Rows) -> dict[str, Bounds]:
    """Bounds of each input.

    Args:
        of_rows: Rows → input → shape, for those of `rows` at least.
        rows: Of the profile.
    """
    least, best, most = (of_rows[number] for number in rows.all)
    return {name: (least[name], best[name], most[name]) for name in least}


def _size(name: str, dimensions: tuple[int | str, ...], index: int, wanted: int | None) -> int:
    fixed = dimensions[index]
    if isinstance(fixed, int):
        if wanted is not None and wanted != fixed:
            raise GraphError(f"dimension {index} of {name} is {fixed} in the ONNX file; {wanted} is wanted")
        return fixed
    if wanted is None:
        hint = "; give the latents' size" if len(dimensions) == 4 else ""
        raise GraphError(f"dimension {index} of {name} ({fixed}) is open in the ONNX file{hint}")
    return wanted
