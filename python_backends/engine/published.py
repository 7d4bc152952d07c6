"""How far runs are, for whoever asks while the engine's thread goes on."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ..common.errors import to_report
from ..common.processes import is_alive
from .info import final_info
from .messages import RunState

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from .run import Denoising

ABANDONED_AFTER_S, SILENT_AFTER_S = 120.0, 1.0
"""A run that nobody has asked after for so long is forgotten; after the latter, if its denoiser is dead."""


class Published:
    """States of runs, and the latents of those that are done, until they are fetched; any thread may call.

    Latents are published with the state that says of them, and replaced with it.
    """

    def __init__(self) -> None:
        """None yet."""
        self._states: dict[str, tuple[RunState, torch.Tensor | None]] = {}
        self._previews: dict[str, tuple[int, torch.Tensor]] = {}
        self._asked_at: dict[str, float] = {}
        self._senders: dict[str, int] = {}

    def begin(self, run: str, steps: int, sender: int) -> None:
        """Tells of a run that has come, from a process."""
        self._senders[run] = sender
        self._asked_at[run] = time.monotonic()
        self._states[run] = RunState(0, steps), None

    def put(self, run: str, state: RunState, latents: torch.Tensor | None = None) -> None:
        """Tells of a run, with its latents if they are final."""
        self._states[run] = state, latents

    def show(self, run: str, step: int, latents: torch.Tensor) -> None:
        """Keeps what there is to see of a run after a step, until it is fetched, or there is another."""
        self._previews[run] = step, latents

    def fetch(self, runs: Sequence[str]) -> tuple[dict[str, RunState | None], list[torch.Tensor]]:
        """States, None of unknown runs, and the latents of those that have a shape; what has ended is forgotten."""
        published = {run: self._states.get(run) for run in runs}
        known = {run: each for run, each in published.items() if each is not None}
        self._asked_at.update(dict.fromkeys(known, time.monotonic()))
        known = {run: self._with_preview(run, *each) for run, each in known.items()}
        for run, (state, _) in known.items():
            if state.ended:
                self.forget(run)
        states = {run: known[run][0] if run in known else None for run in runs}
        return states, [latents for _, latents in known.values() if latents is not None]

    def _with_preview(
        self, run: str, state: RunState, latents: torch.Tensor | None
    ) -> tuple[RunState, torch.Tensor | None]:
        preview = None if state.ended else self._previews.pop(run, None)
        if preview is None:
            return state, latents
        step, seen = preview
        return replace(state, shape=tuple(seen.shape), preview_step=step), seen

    def abandoned(self) -> list[str]:
        """Runs that nobody asks after any more."""
        return [run for run, asked_at in list(self._asked_at.items()) if self._is_abandoned(run, asked_at)]

    def forget(self, run: str) -> None:
        """Nothing is left of a run."""
        self._states.pop(run, None)
        self._previews.pop(run, None)
        self._asked_at.pop(run, None)
        self._senders.pop(run, None)

    def _is_abandoned(self, run: str, asked_at: float) -> bool:
        silent_s, sender = time.monotonic() - asked_at, self._senders.get(run)
        if silent_s < SILENT_AFTER_S or sender is None:  # it has just been forgotten
            return False
        return silent_s > ABANDONED_AFTER_S or not is_alive(sender)


def state_of(run: Denoising) -> tuple[RunState, torch.Tensor | None]:
    """How far a run is, and its latents on the CPU if they are final."""
    so_far = RunState(run.step, run.steps, waited_s=run.report.waited_s, lacks=run.lacks)
    if run.failure is not None:
        return replace(so_far, error=to_report(run.failure)), None
    if not run.done:
        return so_far, None
    return replace(so_far, shape=tuple(run.latents.shape), info=final_info(run)), run.latents.cpu()
