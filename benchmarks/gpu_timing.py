"""Timing on a GPU by events: variants take turns, medians and quartiles come back. On a CPU the clock stands in."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call."""

    median_ms: float
    quartiles_ms: tuple[float, float]
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Timing:
        """From the milliseconds of every round."""
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
        return cls(round(statistics.median(values), 5), (round(low, 5), round(high, 5)), len(values))


def compare(
    variants: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1, warm_up: int = 3
) -> dict[str, Timing]:
    """Times variants that take turns, so that whatever else the machine does meets all of them.

    Args:
        variants: Name → what to call.
        rounds: Measured turns of each.
        calls: Calls in a turn; the time is of one.
        warm_up: Calls before.
    """
    for call in variants.values():
        for _ in range(warm_up):
            call()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            times[name].append(_milliseconds(call, calls) / calls)
    return {name: Timing.of(values) for name, values in times.items()}


def captured(call: Callable[[int], object], calls: int) -> Callable[[], object]:
    """`call(0)` … `call(calls - 1)` as one CUDA graph: kernels without the gaps between launches."""
    if not torch.cuda.is_available():
        return lambda: [call(number) for number in range(calls)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for number in range(calls):
            call(number)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call(number) for number in range(calls)]

    def replay(_kept: object = kept) -> None:
        graph.replay()

    return replay


def _milliseconds(call: Callable[[], object], calls: int) -> float:
    if not torch.cuda.is_available():
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return 1000 * (time.perf_counter() - start)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for _ in range(calls):
        call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)
