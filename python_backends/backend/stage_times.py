"""How long requests spend in the stages before and after denoising, told from model to model. Needs no torch."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ..common.runtime_directory import runtime_directory

if TYPE_CHECKING:
    from pathlib import Path

WEIGHT = 0.2
"""Of the latest request in running means."""

FORGOTTEN_S = 10.0
"""Time constant with which a crowd is forgotten: who is refused because of one measures nothing."""

BEFORE, AFTER = "before-denoising", "after-denoising"


class StageTime:
    """One stage's seconds, in a small file that the server's models share: mean, deviation, and the least."""

    def __init__(self, stage: str, pipeline: str, directory: Path | None = None) -> None:
        """Opens it.

        Args:
            stage: BEFORE (from its claim to its submission) or AFTER (from final latents to the picture).
            pipeline: Whose requests they are.
            directory: None for that of the server.
        """
        self._path = (directory or runtime_directory()) / f"{pipeline}-{stage}.json"

    def note(self, seconds: float) -> None:
        """A request took so long."""
        known = self._read() or _Known(seconds, seconds / 2, seconds, 0.0)
        deviation = known.deviation + WEIGHT * (abs(seconds - known.mean) - known.deviation)
        mean = known.mean + WEIGHT * (seconds - known.mean)
        partial = self._path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # a full disk: it is as if the request had not been
            partial.write_text(json.dumps([mean, deviation, min(known.least, seconds), time.monotonic()]), "ascii")
            partial.rename(self._path)

    def expected(self) -> float:
        """Seconds that most requests stay below, mean + deviation, the nearer to the least the older; 0 if unknown."""
        known = self._read()
        if known is None:
            return 0.0
        share = math.exp(-max(0.0, time.monotonic() - known.at) / FORGOTTEN_S)
        return known.least + share * (known.mean + known.deviation - known.least)

    def least(self) -> float:
        """Seconds of the fastest; 0 if unknown."""
        known = self._read()
        return 0.0 if known is None else known.least

    def _read(self) -> _Known | None:
        try:
            return _Known(*json.loads(self._path.read_text("ascii")))
        except FileNotFoundError:
            return None


class _Known(NamedTuple):
    """Seconds, and when they were noted, of the monotonic clock."""

    mean: float
    deviation: float
    least: float
    at: float
