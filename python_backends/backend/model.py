"""What all models are: a process with a pulse, which whoever calls it looks at first. Needs no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from ..common.processes import close_inherited_connections
from ..common.processors import step_back
from ..common.pulse import EXECUTE, Pulse
from . import metrics
from .settings import instance_of

if TYPE_CHECKING:
    from collections.abc import Mapping

EXECUTE_S = 600.0
"""Longest that a model takes for the requests of one `execute`: a picture of the largest size on a slow processor."""


class Model(ABC):
    """Base of a backend's `TritonPythonModel`.

    Attributes:
        pulse: Of this process.
        doing: What its `execute` is.
        computes: Whether it keeps a core busy, where it has no GPU.
    """

    pulse: Pulse
    doing = EXECUTE
    computes = False

    def initialize(self, args: Mapping[str, str]) -> None:
        """Calls `load`; what that raises fails the load."""
        close_inherited_connections()
        self.pulse = Pulse(args["model_name"], instance_of(args))
        self.load(args)
        if self.computes and args["model_instance_kind"] == "CPU":
            step_back()
        self.pulse.ready()

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Calls `respond`."""
        with self.pulse.within(EXECUTE_S, self.doing):
            return self.respond(requests)

    def finalize(self) -> None:
        """Calls `close`."""
        self.pulse.close()
        self.close()
        metrics.close()

    def close(self) -> None:  # noqa: B027  most have nothing to close
        """What `finalize` is for other models; nothing, unless there is something to close."""

    @abstractmethod
    def load(self, args: Mapping[str, str]) -> None:
        """What `initialize` is for other models."""

    @abstractmethod
    def respond(self, requests: list[Any]) -> list[Any] | None:
        """What `execute` is for other models."""
