"""Models that other models reload when their process has died. Needs no torch.

A load that fails in `pb_utils.load_model` aborts Triton 2.51. So what the loading of a model raises that another one
asked for does not fail the load: its requests are told.
"""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from ..common.errors import ModelDownError
from ..common.filesystem import as_text
from ..common.runtime_directory import runtime_directory
from . import metrics
from .responses import error_response

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@contextmanager
def reloading(name: str) -> Iterator[None]:
    """While a model is loaded again by another one."""
    mark = runtime_directory() / f"{name}.reloading"
    mark.touch()
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


class Reloadable(ABC):
    """Base of a backend's `TritonPythonModel`."""

    _failure: ModelDownError | None = None

    def initialize(self, args: Mapping[str, str]) -> None:
        """Calls `load`; what it raises fails the load, unless another model asked for it."""
        name = args["model_name"]
        try:
            self.load(args)
        except Exception as error:
            if not (runtime_directory() / f"{name}.reloading").exists():
                raise
            pb_utils.Logger.log_error(as_text("".join(traceback.format_exception(error))))
            self._failure = ModelDownError(f"{name} is not ready: the server's log says why")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Calls `respond`; while it could not be loaded, the reason for every request."""
        if self._failure is None:
            return self.respond(requests)
        return [error_response(self._failure) for _ in requests]  # each its own: one for two requests crashes Triton

    def finalize(self) -> None:
        """Calls `close`, if it was loaded."""
        if self._failure is None:
            self.close()
        metrics.close()

    def close(self) -> None:  # noqa: B027  most have nothing to close
        """What `finalize` is for other models; nothing, unless there is something to close."""

    @abstractmethod
    def load(self, args: Mapping[str, str]) -> None:
        """What `initialize` is for other models."""

    @abstractmethod
    def respond(self, requests: list[Any]) -> list[Any]:
        """What `execute` is for other models."""
