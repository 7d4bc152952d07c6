"""A UNet shard's side of ControlNets: all of a step's called at once, beside the encoder half."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .answers import Answer, Place, Wanted
from .residual_sum import Residuals, collect
from .stale_residuals import StaleResiduals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    import torch

    from ..request.completed import ControlNetUse

GRACE_S = 0.5
"""Endpoints give up first: they can say where they asked."""

TENSORS = ("LATENTS", "TIMESTEPS", "ENCODER_HIDDEN_STATES", "TEXT_EMBEDS", "TIME_IDS")
"""Of a UNet's inputs, those that ControlNets take too."""


class Endpoint(Protocol):
    """Where one ControlNet is reached."""

    def submit(self, tensors: Mapping[str, torch.Tensor], uses: Sequence[ControlNetUse]) -> Future[Answer]:
        """Starts a call, a row for each use."""


class PendingResiduals:
    """The calls of one step, on their way; a context manager, at whose end no call is started any more.

    Attributes:
        stale: For each row, the positions of those of its ControlNets whose residuals are the previous step's.
        sent: ControlNet → bytes of the tensors that went to it.
    """

    def __init__(self, rows: int, until: float) -> None:
        """Filled by `ControlNetCalls.start`.

        Args:
            rows: Of the shard's call.
            until: When the step gives up, in seconds of the monotonic clock.
        """
        self.stale: list[list[int]] = [[] for _ in range(rows)]
        self.sent: dict[str, int] = {}
        self.wanted: list[Wanted] = []
        self.started: list[Future[Answer]] = []
        self._rows, self._until = rows, until

    def __enter__(self) -> PendingResiduals:
        return self

    def __exit__(self, *_: object) -> None:
        for future in self.started:
            future.cancel()  # what has not started yet: its tensors are valid only until now

    def wait(self, size: int) -> Residuals:
        """The sum, once all calls have ended or are late; `size` is that of a row."""
        return collect(self.wanted, (self._rows, size), self._until)


@dataclass(frozen=True)
class _Kind:
    """What makes one call of several rows.

    Attributes:
        name: Of the ControlNet.
        occurrence: How many entries of the row before it name the same one.
        awaited: Whether this step wants the answer.
        kept: Whether the next step does.
    """

    name: str
    occurrence: int
    awaited: bool
    kept: bool


class ControlNetCalls:
    """Calls ControlNets wherever they are."""

    def __init__(self, endpoint: Callable[[str], Endpoint], timeout_s: float) -> None:
        """Calls nothing yet.

        Args:
            endpoint: Of a name.
            timeout_s: Longest time that a step waits, in seconds.
        """
        self._endpoint, self._timeout_s = endpoint, timeout_s
        self._endpoints: dict[str, Endpoint] = {}
        self._previous = StaleResiduals(timeout_s)

    def start(
        self, tensors: Mapping[str, torch.Tensor], controls: Sequence[Sequence[ControlNetUse]]
    ) -> PendingResiduals:
        """Calls every ControlNet that a row uses, once for all its rows; once more for rows that use it twice.

        Args:
            tensors: Of the UNet's call; LATENTS [B, C, h, w] and the others, a row each.
            controls: The active ControlNets of every row.
        """
        self._previous.drop_old()
        pending = PendingResiduals(len(controls), time.monotonic() + self._timeout_s + GRACE_S)
        calls: dict[_Kind, list[Place]] = {}
        for row, uses in enumerate(controls):
            names = [use.name for use in uses]
            for position, use in enumerate(uses):
                previous = self._previous.take(use.history)
                if previous is not None:
                    place = [(row, position)]
                    pending.wanted.append(Wanted(use.name, [previous.row], place, previous.answer, previous.is_new))
                    pending.stale[row].append(position)
                kept = use.history is not None and not use.history.is_last
                if previous is None or kept:
                    kind = _Kind(use.name, names[:position].count(use.name), previous is None, kept)
                    calls.setdefault(kind, []).append((row, position))
        for kind, places in calls.items():
            rows, uses = [row for row, _ in places], [controls[row][position] for row, position in places]
            taken = _rows(tensors, rows, copied=kind.kept)
            nbytes = sum(tensor.nbytes for tensor in taken.values())
            pending.sent[kind.name] = pending.sent.get(kind.name, 0) + nbytes
            future = self._of(kind.name).submit(taken, uses)
            if kind.awaited:
                pending.wanted.append(Wanted(kind.name, range(len(rows)), places, future))
            if kind.kept:
                self._previous.keep([use.history for use in uses], future, is_new=not kind.awaited)
            else:
                pending.started.append(future)
        return pending

    def _of(self, name: str) -> Endpoint:
        if name not in self._endpoints:
            self._endpoints[name] = self._endpoint(name)
        return self._endpoints[name]


def _rows(tensors: Mapping[str, torch.Tensor], rows: list[int], copied: bool) -> dict[str, torch.Tensor]:
    """The rows of what a ControlNet takes; on the CPU, copied where the call may outlive the shard's own."""
    taken = {name: tensor.cpu() for name, tensor in tensors.items() if name in TENSORS}
    if rows != list(range(len(taken["LATENTS"]))):
        return {name: tensor[rows] for name, tensor in taken.items()}
    return {name: tensor.clone() for name, tensor in taken.items()} if copied else taken
