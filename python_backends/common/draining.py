"""Draining: a server that is about to stop takes no new requests, and finishes those that it has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .pulse import seen, seen_models
from .runtime_directory import runtime_directory

if TYPE_CHECKING:
    from pathlib import Path

MARK = "draining"
"""A file of the runtime directory."""


def begin_draining(runtime: Path) -> None:
    """From now on the server whose runtime directory it is refuses new requests."""
    (runtime / MARK).touch()


def end_draining(runtime: Path) -> None:
    """It takes requests again."""
    (runtime / MARK).unlink(missing_ok=True)


def is_draining(runtime: Path | None = None) -> bool:
    """Whether a server is; None: this process's."""
    return ((runtime or runtime_directory()) / MARK).exists()


def quiet_s(runtime: Path) -> float:
    """Seconds for which no model has had anything to do; infinite where none tells."""
    return min((each.idle_s for model in seen_models(runtime) for each in seen(model, runtime)), default=math.inf)
