"""How long claims hold, and how recent refusals change what a desk says. Needs no torch."""

from __future__ import annotations

CLAIM_S = 5.0
"""How long a claim holds its place, at least: its prompt is encoded meanwhile."""

CROWDED_RUNS = 4.0
"""How long a refusal tells of a crowd, in times of such a run without others."""


class Crowd:
    """Whether claims are being refused: then only those are to be accepted that begin at once.

    A run that waits spends the time in which it could share steps. Where that is scarce, those that come later and need
    not wait leave more of it: a third more runs in time at ten times the load, where steps of two take 1.4 times as
    long as of one.
    """

    def __init__(self) -> None:
        self._refused: list[tuple[float, float]] = []  # until when each counts, and its patience

    def note(self, now: float, alone_s: float, patience: float) -> None:
        """A claim was refused.

        Args:
            now: Seconds of the clock.
            alone_s: What its run takes without others.
            patience: How many times that was its limit.
        """
        looser = [each for each in self._refused if each[0] > now and each[1] > patience]
        self._refused = [*looser, (now + CROWDED_RUNS * alone_s, patience)]

    def forbids_waiting(self, now: float, patience: float) -> bool:
        """Whether somebody at least as patient was refused not long ago."""
        return any(until > now and refused >= patience for until, refused in self._refused)
