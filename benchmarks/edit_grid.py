"""Edited scenes, a row each; what the columns are is said below the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from swiftdiffusion.clients.commands.contact_sheet import contact_sheet
from swiftdiffusion.export.demo.edits import SceneEdit

WAYS = ("exact", "template, fast", "template, balanced", "own, fast", "10 steps", "cut out, exact")
HEADINGS = ("old picture, mask", *WAYS)
QUALITY = 20
"""WebP's: four scenes have about 13 kB."""


def write_grid(path: Path, edits: Sequence[SceneEdit], drawn: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Writes a WebP file.

    Args:
        path: Of the file.
        edits: Shown with their masks outlined.
        drawn: Pictures of each by way, uint8 [H, W, 3].
    """
    cells: list[Image.Image] = []
    for edit, pictures in zip(edits, drawn, strict=True):
        cells += [_outlined(edit), *(Image.fromarray(pictures[way]) for way in WAYS)]
    captioned = list(zip(cells, chain(HEADINGS, repeat("")), strict=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(captioned, columns=len(HEADINGS)).save(path, quality=QUALITY, method=6)


def _outlined(edit: SceneEdit) -> Image.Image:
    picture = Image.fromarray(edit.picture)
    rows, columns = edit.mask.nonzero()
    left, top, right, bottom = (int(each) for each in (columns.min(), rows.min(), columns.max(), rows.max()))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((left, top, right, bottom), outline="black")
    pen.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline="white")
    return picture
