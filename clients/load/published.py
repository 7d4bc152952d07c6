"""What is published of two text-to-image services in production.

Source: SwiftDiffusion (Katz, USENIX ATC'25), which analyses 20 days and more than 500,000 requests of services A and B.
Numbers of adapters per request are its Table 1, populations its text; invocations by popularity and the curves of
caches are points of the figures that come with the authors' code.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterStatistics:
    """How the requests of one service use one kind of adapters.

    Attributes:
        per_request: shares of the requests that use 0, 1, 2 … of them.
        invocations: (k, share of all invocations that the k most popular have), k rising; the last k is the population.
        lru_loads: mean loads per request of a server that keeps the 1, 2 … adapters that it used last.
    """

    per_request: tuple[float, ...]
    invocations: tuple[tuple[int, float], ...]
    lru_loads: tuple[float, ...]

    @property
    def population(self) -> int:
        """How many different ones there are."""
        return self.invocations[-1][0]

    @property
    def mean_per_request(self) -> float:
        """Adapters of an average request."""
        return sum(number * share for number, share in enumerate(self.per_request))


@dataclass(frozen=True)
class Service:
    """One service's adapters."""

    controlnets: AdapterStatistics
    loras: AdapterStatistics


SERVICES: Mapping[str, Service] = {
    "A": Service(
        AdapterStatistics(
            (0.0, 0.305, 0.695),
            ((1, 0.311), (2, 0.564), (3, 0.735), (4, 0.893), (5, 0.976), (6, 0.987), (8, 0.990), (47, 1.0)),
            (1.534, 0.864, 0.561, 0.181, 0.012, 0.010, 0.009, 0.008, 0.008, 0.008),
        ),
        AdapterStatistics(
            (0.002, 0.088, 0.910),
            (
                *((3, 0.093), (9, 0.192), (16, 0.260), (46, 0.367), (94, 0.447), (146, 0.498), (306, 0.589)),
                *((643, 0.685), (1105, 0.757), (2007, 0.840), (4501, 0.957), (6980, 1.0)),
            ),
            (1.880, 1.473, 1.460, 1.387, 1.371, 1.330, 1.312, 1.283, 1.264, 1.240),
        ),
    ),
    "B": Service(
        AdapterStatistics(
            (0.019, 0.251, 0.699, 0.031),
            (
                *((1, 0.222), (2, 0.357), (3, 0.492), (4, 0.608), (5, 0.715), (6, 0.806), (7, 0.878), (8, 0.945)),
                *((9, 0.962), (12, 0.994), (94, 1.0)),
            ),
            (1.593, 1.035, 0.873, 0.617, 0.445, 0.290, 0.148, 0.074, 0.040, 0.010),
        ),
        AdapterStatistics(
            (0.072, 0.736, 0.192),
            (
                *((2, 0.266), (6, 0.404), (13, 0.525), (24, 0.601), (49, 0.668), (76, 0.702), (209, 0.771)),
                *((643, 0.848), (1420, 0.901), (4501, 0.978), (7463, 1.0)),
            ),
            (0.894, 0.799, 0.733, 0.687, 0.648, 0.619, 0.594, 0.574, 0.556, 0.540),
        ),
    ),
}
"""By name. LoRAs beyond two and ControlNets beyond three per request were not seen."""
