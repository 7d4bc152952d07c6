"""The shapes that engines are built for, from rows and the latents' size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .graph import GraphError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...python_backends.tensorrt.metadata import Bounds, Shape

_DIMENSION = re.compile(r"(?:(\d+)\*)?(rows|height|width)(?:/([1-9]\d*))?")


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
    inputs: Mapping[str, tuple[int | str, ...]], rows: int, latents: tuple[int, int] | None
) -> dict[str, Shape]:
    """Shapes of a network's inputs for so many rows.

    Args:
        inputs: Input → shape; dimensions that vary are called `rows`, `height`, `width`, and what follows from them,
            such as `height/4` or `8*width`.
        rows: Of the batch, which is the first dimension.
        latents: (height, width) in latent cells; None if the file fixes them.

    Raises:
        GraphError: If a dimension stays open, or the file fixes the batch to another size.
    """
    known = {"rows": rows} | ({} if latents is None else {"height": latents[0], "width": latents[1]})
    shapes = {}
    for name, dimensions in inputs.items():
        if dimensions and isinstance(dimensions[0], int) and dimensions[0] != rows:
            raise GraphError(f"{name} has {dimensions[0]} rows in the ONNX file; {rows} are wanted")
        shapes[name] = tuple(_size(name, dimension, known) for dimension in dimensions)
    return shapes


def profile(of_rows: Mapping[int, Mapping[str, Shape]], rows: Rows) -> dict[str, Bounds]:
    """Bounds of each input.

    Args:
        of_rows: Rows → input → shape, for those of `rows` at least.
        rows: Of the profile.
    """
    least, best, most = (of_rows[number] for number in rows.all)
    return {name: (least[name], best[name], most[name]) for name in least}


def _size(name: str, dimension: int | str, known: Mapping[str, int]) -> int:
    if isinstance(dimension, int):
        return dimension
    found = _DIMENSION.fullmatch(dimension)
    if not found:
        raise GraphError(f"a dimension of {name} is {dimension!r} in the ONNX file; known: rows, height, width")
    factor, unit, divisor = int(found[1] or 1), found[2], int(found[3] or 1)
    if unit not in known:
        raise GraphError(f"{name} has an open {unit} in the ONNX file; give the latents' size")
    if known[unit] % divisor:
        raise GraphError(f"{name} has {dimension} cells; wanted: latents whose {unit} is a multiple of {divisor}")
    return factor * known[unit] // divisor
