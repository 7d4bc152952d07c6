"""Answers of ControlNets, and which rows of a step want them. Needs neither Triton nor, to be imported, torch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..common.errors import ControlNetDownError, ControlNetUnavailableError, RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future

    import torch

Place = tuple[int, int]
"""A row of the shard's call, and the position of one of its ControlNets."""


@dataclass(frozen=True)
class Answer:
    """What one call of a ControlNet gave.

    Attributes:
        residuals: [B, sum of C·h·w], a row for each that was asked for.
        failures: Row → why it has none.
        memory: Whatever must live as long as the residuals are used.
    """

    residuals: torch.Tensor
    failures: Mapping[int, RequestError]
    memory: object = field(default=None, repr=False)


@dataclass(frozen=True)
class Wanted:
    """Rows of an answer that the step wants.

    Attributes:
        name: Of the ControlNet.
        rows: Of the answer.
        places: Where each belongs.
        answer: Once it has come.
        is_new: Whether no earlier step had it.
    """

    name: str
    rows: Sequence[int]
    places: Sequence[Place]
    answer: Future[Answer]
    is_new: bool = True


class Downtime:
    """Since when a ControlNet is down, and what its callers are told."""

    def __init__(self, patience_s: float) -> None:
        """It is up; one that is down for longer than this ends the requests that use it."""
        self._patience_s = patience_s
        self._since: float | None = None
        self._asked = 0.0

    def up(self) -> None:
        """It answered."""
        self._since = None

    def error(self, message: str) -> ControlNetUnavailableError:
        """It did not: what to raise."""
        now = time.monotonic()
        if self._since is None or now - self._asked > self._patience_s:  # it may have been up meanwhile
            self._since = now
        self._asked = now
        return (
            ControlNetDownError(message)
            if now - self._since <= self._patience_s
            else ControlNetUnavailableError(message)
        )


def late(name: str, server: str | None = None) -> ControlNetUnavailableError:
    """The error of those who wait for it; `server` is the other one that it is on."""
    place = "" if server is None else f" on {server}"
    return ControlNetUnavailableError(f'CONTROLNETS names "{name}"{place}, which does not answer in time')
