"""What calls and steps take, where they are computed: on a GPU that is still at it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..networks.token_costs import Features
    from ..networks.unet import UNet

WEIGHTS = "measured"
"""A prompt's second step and those after it are what most steps are like."""


@dataclass(frozen=True)
class Measured:
    """An evaluation or a step: work, ranks × cells beside the weights, begin and end, ControlNets' work, features."""

    work: int
    ranks: int
    begin: float | torch.cuda.Event
    end: float | torch.cuda.Event
    control_work: int = 0
    features: Features | None = None

    def seconds(self) -> float | None:
        """What it took; None while it has not ended."""
        if isinstance(self.begin, torch.cuda.Event) and isinstance(self.end, torch.cuda.Event):
            return self.begin.elapsed_time(self.end) / 1000 if self.end.query() else None
        return float(self.end) - float(self.begin)  # type: ignore[arg-type]


def now(on_gpu: bool) -> float | torch.cuda.Event:
    """This moment; on a GPU the one in which it gets here."""
    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def call_seconds(unet: UNet, tensors: Mapping[str, torch.Tensor]) -> float:
    """Of one call."""
    return time_of(lambda: unet(tensors, WEIGHTS).cpu(), unet.on_gpu)


def time_of(do: Callable[[], object], on_gpu: bool) -> float:
    """Seconds; on the CPU of this thread's time alone: while a server starts, others have the cores too."""
    clock = time.perf_counter if on_gpu else time.thread_time
    started = clock()
    do()
    return clock() - started
