"""The adapters of each request of a trace: drawn by popularity, or those of a request shortly before.

Independent draws would need more loads than the published curves of caches show: 1.89 instead of 1.47 per request for
service A's LoRAs in a cache of two. So a request has, with the probability `repeat`, the whole set of one of the last
WINDOW requests, the one j before it in proportion to j^-decay; popularity and numbers per request stay as they were.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from .popularity import draw_weights
from .published import AdapterStatistics

AdapterSet: TypeAlias = tuple[int, ...]
"""Ranks of popularity from 0, rising."""

Kind: TypeAlias = Literal["controlnets", "loras"]
KINDS: tuple[Kind, ...] = ("controlnets", "loras")
WINDOW = 20


@dataclass(frozen=True)
class Locality:
    """How a service's requests repeat each other.

    Attributes:
        repeat: probability that a request's set is one of the last WINDOW.
        decay: exponent of the distance.
    """

    repeat: float
    decay: float


LOCALITY: Mapping[tuple[str, Kind], Locality] = {
    ("A", "controlnets"): Locality(0.67, 0.42),
    ("A", "loras"): Locality(0.33, 1.88),
    ("B", "controlnets"): Locality(0.55, 1.13),
    ("B", "loras"): Locality(0.32, 2.14),
}
"""By service: what makes the largest distance from the published curves of caches smallest (by Nelder and Mead)."""


def draw_sets(
    statistics: AdapterStatistics, locality: Locality, count: int, random: np.random.Generator
) -> list[AdapterSet]:
    """The adapters of `count` requests, one after the other."""
    numbers = np.cumsum(statistics.per_request)
    ranks = np.cumsum(draw_weights(statistics))
    distances = np.cumsum(np.arange(1, WINDOW + 1) ** -locality.decay)
    sets: list[AdapterSet] = []
    for index in range(count):
        if random.random() < locality.repeat:
            distance = 1 + _place(distances, random)
            if distance <= index:
                sets.append(sets[index - distance])
                continue
        number, drawn = _place(numbers, random), set[int]()
        while len(drawn) < number:
            drawn.add(_place(ranks, random))
        sets.append(tuple(sorted(drawn)))
    return sets


def lru_loads(sets: Sequence[AdapterSet], places: int) -> list[float]:
    """Mean loads per request of caches of 1 … `places` adapters that drop the least recently used."""
    hits = [0] * places
    recent: list[int] = []
    for rank in (rank for used in sets for rank in used):
        if rank in recent:
            hits[recent.index(rank)] += 1
            recent.remove(rank)
        recent = [rank, *recent[: places - 1]]
    total = sum(map(len, sets))
    return [(total - sum(hits[: size + 1])) / max(1, len(sets)) for size in range(places)]


def _place(cumulative: np.ndarray, random: np.random.Generator) -> int:
    return int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
