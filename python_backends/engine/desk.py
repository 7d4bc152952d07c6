"""A shard's desk: who is in line, who takes the next step, when somebody new would be done. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .step_times import StepTimes


@dataclass(frozen=True)
class Work:
    """What a run costs.

    Attributes:
        rows: Rows of the UNet's batch in each of its steps: 2 with guidance, else 1.
        pixels: Height × width.
        steps: Steps left.
    """

    rows: int
    pixels: int
    steps: int

    @property
    def of_a_step(self) -> int:
        """As `StepTimes` counts it."""
        return self.rows * self.pixels


class Desk:
    """The line of one shard, in the order of arrival: the first that can step share the next one."""

    def __init__(self, places: int, times: StepTimes) -> None:
        """An empty line.

        Args:
            places: Most runs that share a step.
            times: What steps take.
        """
        self._places, self._times = places, times
        self._line: dict[str, Work] = {}

    def enter(self, run: str, work: Work) -> None:
        """A run joins the line's end."""
        self._line[run] = work

    def leave(self, run: str) -> None:
        """A run is done, or given up."""
        self._line.pop(run, None)

    def batch(self, able: Collection[str]) -> list[str]:
        """Those of the runs that can step which take the next one; a run that waits for a LoRA takes no place."""
        return [run for run in self._line if run in able][: self._places]

    def stepped(self, runs: Iterable[str]) -> None:
        """These have taken a step."""
        for run in runs:
            work = self._line[run]
            self._line[run] = Work(work.rows, work.pixels, work.steps - 1)

    def quote(self, work: Work) -> float:
        """Seconds until a run that came now would be done: the line, run ahead."""
        line, elapsed = [*self._line.values(), work], 0.0
        while True:
            sharing = line[: self._places]
            steps = max(0, min(each.steps for each in sharing))
            elapsed += steps * self._times.expected(sum(each.of_a_step for each in sharing))
            left = [Work(each.rows, each.pixels, each.steps - steps) for each in sharing]
            if len(line) <= self._places and left[-1].steps <= 0:
                return elapsed
            line = [each for each in left if each.steps > 0] + line[self._places :]
