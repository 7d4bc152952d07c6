"""A replay as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .outcomes import Outcome, Status

_COLOURS = {Status.OK: "#2a6f4e", Status.REFUSED: "#c9822b", Status.TIMED_OUT: "#8a5fa8", Status.FAILED: "#b03030"}


def plot(outcomes: Sequence[Outcome], slo_seconds: float, file: Path, title: str) -> None:
    """Latencies over arrival, and the share of all requests that had their picture by then.

    Args:
        outcomes: of a replay.
        slo_seconds: drawn as a line.
        file: its suffix is the format.
        title: above both.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    over_time, share = figure.subplots(1, 2)
    for status, colour in _COLOURS.items():
        ended = [each for each in outcomes if each.status is status]
        if ended:
            arrivals, latencies = zip(*((each.at, each.seconds) for each in ended), strict=True)
            over_time.scatter(arrivals, latencies, s=6, c=colour, label=status)
    over_time.axhline(slo_seconds, color="grey", linestyle="--", linewidth=1, label="SLO")
    over_time.set(xlabel="arrival, s", ylabel="latency, s", ylim=(0, None))
    over_time.legend(fontsize="small")
    pictures = np.sort([each.seconds for each in outcomes if each.status is Status.OK])
    counted = np.arange(1, len(pictures) + 1) / max(1, len(outcomes))
    share.step(pictures, counted, where="post", color=_COLOURS[Status.OK])
    share.axvline(slo_seconds, color="grey", linestyle="--", linewidth=1)
    share.set(xlabel="latency, s", ylabel="share of all requests", xlim=(0, None), ylim=(0, 1))
    figure.suptitle(title)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
