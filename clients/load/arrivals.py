"""When requests arrive: a Poisson process whose rate is multiplied in bursts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Burst:
    """From second `at` the rate is `factor` times the usual, for so many seconds."""

    at: float
    seconds: float
    factor: float


def draw_arrivals(
    rate: float, seconds: float, bursts: Sequence[Burst], random: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Arrival times, rising.

    Args:
        rate: requests per second outside bursts.
        seconds: how long requests arrive.
        bursts: where several overlap, the largest factor counts.
        random: a process of rate 1 is drawn from it and its time stretched, which is exact for any rate.
    """
    ends = {edge for burst in bursts for edge in (burst.at, burst.at + burst.seconds) if 0 < edge < seconds}
    edges = np.array([0.0, *sorted(ends), seconds])
    factors = [_factor(middle, bursts) for middle in (edges[:-1] + edges[1:]) / 2]
    expected = np.concatenate(([0.0], np.cumsum(rate * np.diff(edges) * factors)))
    arrivals: list[float] = []
    total = _exponential(random)
    while total < expected[-1]:
        arrivals.append(total)
        total += _exponential(random)
    return np.interp(arrivals, expected, edges)


def draw_bursts(
    seconds: float, factor: float, mean_burst: float, mean_calm: float, random: np.random.Generator
) -> list[Burst]:
    """Bursts of a Markov-modulated Poisson process, which begins calm.

    Args:
        seconds: how long requests arrive.
        factor: of the rate in a burst.
        mean_burst: mean seconds of a burst; each is exponentially distributed.
        mean_calm: of the time between two.
        random: source of all that is drawn.
    """
    bursts: list[Burst] = []
    now = mean_calm * _exponential(random)
    while now < seconds:
        length = mean_burst * _exponential(random)
        bursts.append(Burst(now, length, factor))
        now += length + mean_calm * _exponential(random)
    return bursts


def _factor(time: float, bursts: Sequence[Burst]) -> float:
    return max((burst.factor for burst in bursts if burst.at <= time < burst.at + burst.seconds), default=1.0)


def _exponential(random: np.random.Generator) -> float:
    return -float(np.log1p(-random.random()))
