"""What a run asks of a shard. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..request.completed import CompletedRequest, Priority


@dataclass(frozen=True)
class Work:
    """What a run asks of a shard.

    Attributes:
        rows: Rows of the UNet's batch in each of its steps: 2 for both halves of guidance, else 1.
        pixels: Height × width.
        steps: Steps left.
        priority: Who goes before whom.
        control_rows: Rows that ControlNets evaluate in all steps together, for each half, the conditional one last.
    """

    rows: int
    pixels: int
    steps: int
    priority: Priority = "normal"
    control_rows: tuple[int, ...] = ()

    @classmethod
    def of(cls, request: CompletedRequest) -> Work:
        """What a request asks."""
        steps = request.evaluations or request.steps
        halves = request.halves or (2 if request.guidance_scale > 1 else 1)
        always = sum(use.rows(1, steps) for use in request.controlnets if not use.guess_mode)
        conditional = sum(use.rows(1, steps) for use in request.controlnets)
        control_rows = (always, conditional)[-halves:] if conditional else ()
        return cls(halves, request.height * request.width, steps, request.priority, control_rows)

    @property
    def of_a_step(self) -> int:
        """As `StepTimes` counts it."""
        return self.rows * self.pixels

    @property
    def control_work(self) -> int:
        """That of ControlNets, of a step on average."""
        return round(sum(self.control_rows) * self.pixels / max(1, self.steps))

    @property
    def in_all(self) -> int:
        """Of all steps, ControlNets' too."""
        return self.steps * (self.of_a_step + self.control_work)

    def shared(self, helpers: int) -> Work:
        """What is left for the fullest shard where so many others evaluate halves of it."""
        if helpers == 0 or self.rows == 1:
            return self
        return replace(self, rows=1, control_rows=self.control_rows and (max(self.control_rows),))
