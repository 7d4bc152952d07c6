"""Which LoRAs at which scales: what a shard is told to make resident. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LoraSet = tuple[tuple[str, float], ...]
"""(key, scale) pairs, sorted; the key is the name of a canonical file in the host cache, without its suffix."""

NO_LORAS: LoraSet = ()


def make_set(loras: Iterable[tuple[Path, float]]) -> LoraSet:
    """The set of canonical files, each with its scale; two names may stand for one content."""
    scales: dict[str, float] = {}
    for path, scale in loras:
        scales[path.stem] = scales.get(path.stem, 0.0) + scale
    return tuple(sorted(scales.items()))
