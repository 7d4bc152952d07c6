"""How often the adapter of each rank of popularity is used, from points of the published curves."""

import numpy as np
import numpy.typing as npt

from .published import AdapterStatistics

_ROUNDS = 60  # of the fixed point; its shares are then within 1e-4 of the published points


def invocation_shares(statistics: AdapterStatistics) -> npt.NDArray[np.float64]:
    """Share of all invocations by rank, [population], the most popular first; between published points all alike."""
    ranks, shares = zip((0, 0.0), *statistics.invocations, strict=True)
    return np.diff(np.interp(np.arange(statistics.population + 1), ranks, shares))


def draw_weights(statistics: AdapterStatistics) -> npt.NDArray[np.float64]:
    """Weights by rank that, drawn without replacement for each request, give `invocation_shares`.

    A request has none twice, so that the popular ones would come out rarer than their own weight; where requests have
    three, these are taken for one and a half times two.
    """
    wanted = invocation_shares(statistics)
    weights = wanted.copy()
    one, more = statistics.per_request[1], sum(n / 2 * share for n, share in enumerate(statistics.per_request[2:], 2))
    for _ in range(_ROUNDS):
        odds = weights / (1 - weights)
        drawn = one * weights + more * weights * (1 + odds.sum() - odds)
        weights = weights * wanted / drawn
        weights /= weights.sum()
    return weights
