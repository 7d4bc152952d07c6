"""Residuals that a step takes from the one before it, for ControlNets behind slow links.

Katz (SwiftDiffusion) §ControlNet-as-a-Service: where a ControlNet answers later than the UNet's encoder half
ends, the previous step's residuals stand in for it. It changes the picture, and so a request has to ask for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from ..request.completed import StepHistory
    from .answers import Answer


@dataclass(frozen=True)
class Previous:
    """A row of an answer that was asked for a step ago; `is_new` until a step has had it."""

    answer: Future[Answer]
    row: int
    step: int
    kept_at: float
    is_new: bool


class StaleResiduals:
    """What the next step may want; a request whose next step another shard takes leaves its own here until it ages."""

    def __init__(self, age_s: float) -> None:
        """Keeps an answer no longer than so many seconds."""
        self._age_s = age_s
        self._kept: dict[tuple[str, int, int], Previous] = {}

    def drop_old(self) -> None:
        """Forgets what nobody has taken: answers own memory that tensors between models need."""
        if self._kept:
            now = time.monotonic()
            self._kept = {key: each for key, each in self._kept.items() if now - each.kept_at < self._age_s}

    def take(self, history: StepHistory | None) -> Previous | None:
        """What was kept a step before this one; None where the step has to wait for residuals of its own."""
        if history is None:
            return None
        previous = self._kept.pop(history.key, None)
        return previous if previous is not None and previous.step == history.step - 1 else None

    def keep(self, histories: Sequence[StepHistory | None], answer: Future[Answer], is_new: bool) -> None:
        """Keeps the rows of an answer that is on its way; new, unless its own step takes it too."""
        now = time.monotonic()
        for row, history in enumerate(histories):
            if history is not None:
                self._kept[history.key] = Previous(answer, row, history.step, now, is_new)
