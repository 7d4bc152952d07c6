"""What a run asks of a shard. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..request.completed import CompletedRequest, Priority

MISS_STEPS = 2
"""A mask-aware run computes all in, after other LoRAs or ControlNets than before."""


@dataclass(frozen=True)
class Work:
    """What a run asks of a shard.

    Attributes:
        rows: Rows of the UNet's batch in each of its steps: 2 for both halves of guidance, else 1.
        pixels: Height × width.
        steps: Steps left.
        priority: Who goes before whom.
        control_rows: Rows that ControlNets evaluate in all steps together, for each half, the conditional one last.
        masked: `Edit.parts` of a run that leaves tokens out.
        masked_steps: Steps in which it does, at least.
        share: What its rows take of those that leave nothing out, on average over the steps; a shard knows that.
    """

    rows: int
    pixels: int
    steps: int
    priority: Priority = "normal"
    control_rows: tuple[int, ...] = ()
    masked: tuple[int, ...] = ()
    masked_steps: int = 0
    share: float = 1.0

    @classmethod
    def of(cls, request: CompletedRequest) -> Work:
        """What a request asks."""
        steps = request.evaluations or request.steps
        halves = request.halves or (2 if request.guidance_scale > 1 else 1)
        always = sum(use.rows(1, steps) for use in request.controlnets if not use.guess_mode)
        conditional = sum(use.rows(1, steps) for use in request.controlnets)
        control_rows = (always, conditional)[-halves:] if conditional else ()
        masked: tuple[int, ...] = ()
        masked_steps = 0
        if request.edit is not None:
            masked_steps = max(0, request.edit.masked_steps(steps) - MISS_STEPS * _changes(request))
            masked = request.edit.parts if masked_steps else ()
        pixels = request.height * request.width
        return cls(halves, pixels, steps, request.priority, control_rows, masked, masked_steps)

    @property
    def of_a_step(self) -> int:
        """As `StepTimes` counts it."""
        return round(self.share * self.rows * self.pixels)

    @property
    def control_work(self) -> int:
        """That of ControlNets, of a step on average."""
        return round(sum(self.control_rows) * self.pixels / max(1, self.steps))

    @property
    def in_all(self) -> int:
        """Of all steps, ControlNets' too."""
        return self.steps * (self.of_a_step + self.control_work)

    def shared(self, helpers: int) -> Work:
        """What is left for the fullest shard where so many others evaluate halves, as none do of a mask-aware run."""
        if helpers == 0 or self.rows == 1 or self.masked_steps:
            return self
        return replace(self, rows=1, control_rows=self.control_rows and (max(self.control_rows),))


def _changes(request: CompletedRequest) -> int:
    """How often its LoRAs and ControlNets may become others while it runs."""
    late = sum(use.bound > 0 or use.patch_step is not None for use in request.loras)
    return late + sum((use.start > 0) + (use.end < 1) for use in request.controlnets)
