"""What every training stage needs: a budget, checkpoints to resume from, and a finished mark."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Budget:
    """How long a stage may run: a number of steps, or minutes of training time, whichever ends first.

    Attributes:
        steps: most optimiser steps.
        minutes: most minutes of training time, summed over resumed runs; None for no limit.
        spent: seconds used by earlier runs of the stage.
    """

    steps: int
    minutes: float | None = None
    spent: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Seconds of training so far, earlier runs included."""
        return self.spent + time.monotonic() - self._started

    def progress(self, step: int) -> float:
        """The share of the budget that is used up, 0..1; learning rates follow it."""
        share = step / self.steps
        if self.minutes is not None:
            share = max(share, self.seconds() / (60 * self.minutes))
        return min(share, 1.0)


def warmup_cosine(progress: float, peak: float, warmup: float = 0.03, floor: float = 0.02) -> float:
    """Learning rate after a share ``progress`` (0..1) of the budget: linear warm-up to ``peak``, then a cosine."""
    if progress < warmup:
        return peak * (progress + 1e-3) / (warmup + 1e-3)
    phase = (progress - warmup) / (1 - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * phase)))


@dataclass(frozen=True)
class Checkpoint:
    """The file that a stage resumes from: a dictionary of tensors, state dicts and numbers, written atomically."""

    path: Path

    def save(self, **state: Any) -> None:
        """Writes the state beside the old file, then replaces it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def load(self) -> dict[str, Any] | None:
        """The last state written, or None."""
        return torch.load(self.path, map_location="cpu", weights_only=True) if self.path.exists() else None


class ExponentialMovingAverage:
    """Average of a module's parameters over its training, warmed up so that early steps do not weigh on it.

    Args:
        module: the module in training.
        decay: share of the old average kept at each step, once warmed up.
    """

    def __init__(self, module: torch.nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.average = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        """Moves the average towards the module's parameters, in place."""
        decay = min(self.decay, (1 + step) / (10 + step))
        state = module.state_dict()
        torch._foreach_lerp_([self.average[name] for name in state], list(state.values()), 1 - decay)
