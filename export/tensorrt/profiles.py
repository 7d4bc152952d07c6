"""The shapes that engines are built for, from rows and the latents' size."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from .graph import GraphError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...python_backends.tensorrt.metadata import Bounds, Shape

_DIMENSION = re.compile(r"(?:(\d+)\*)?(rows|height|width)(?:/([1-9]\d*))?")
_Size = TypeVar("_Size")


class Range(NamedTuple, Generic[_Size]):
    """What an optimisation profile takes, and what it is tuned for; all three equal for one that takes a single one."""

    least: _Size
    best: _Size
    most: _Size


Rows = Range[int]
"""Of the batch."""

Latents = Range[tuple[int, int]]
"""Height and width in latent cells."""


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


def parse_latents(text: str) -> Latents:
    """Sizes from texts such as `128x128`, for that alone, or `32x32:128x128:256x256`.

    Raises:
        ValueError: If the text is something else.
    """
    found = re.findall(r"(?:^|:)([1-9]\d{0,4})x([1-9]\d{0,4})(?=:|$)", text)
    sizes = [(int(height), int(width)) for height, width in found]
    if ":".join(f"{height}x{width}" for height, width in sizes) != text or len(sizes) not in (1, 3):
        raise ValueError(
            f"latents are {text!r}; allowed: height and width in latent cells, such as 128x128, "
            "or least:best:most, such as 32x32:128x128:256x256"
        )
    latents = Latents(*(sizes if len(sizes) == 3 else 3 * sizes))
    for sides in zip(*latents, strict=True):
        if sorted(sides) != list(sides):
            raise ValueError(f"latents are {text!r}; allowed: least ≤ best ≤ most, of heights and of widths")
    return latents


def profile(inputs: Mapping[str, tuple[int | str, ...]], rows: Rows, latents: Latents | None) -> dict[str, Bounds]:
    """Bounds of each input.

    Args:
        inputs: As of `input_shapes`.
        rows: Of the profile.
        latents: Of the profile; None if the file fixes them.

    Raises:
        GraphError: As `input_shapes`.
    """
    points = zip(rows, latents or (None, None, None), strict=True)
    least, best, most = (input_shapes(inputs, count, size) for count, size in points)
    return {name: (least[name], best[name], most[name]) for name in least}


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
