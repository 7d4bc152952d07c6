"""Which of a server's processes hang: those that a signal has stopped, and those that exceed what they do."""

from collections.abc import Sequence
from pathlib import Path

from ..common.processes import process_state
from ..common.pulse import loading, seen, seen_models
from .model_processes import ModelProcess

HANGS_S = 1.0
"""A process that is stopped or overdue for so long, in look after look, hangs."""


class Hanging:
    """Those of one server, tritonserver itself among them."""

    def __init__(self, server: int, runtime: Path) -> None:
        """Suspects nobody yet.

        Args:
            server: tritonserver's process id.
            runtime: its models' runtime directory.
        """
        self._server, self._runtime = server, runtime
        self._suspected_s: dict[int, float] = {}

    def found(self, processes: Sequence[ModelProcess], passed: float) -> list[tuple[int, str]]:
        """Ids, and a sentence's beginning each.

        Args:
            processes: of its models, those that live.
            passed: seconds since the last look.
        """
        models = {process.pid: process.model for process in processes}
        stopped = {process.pid: process.model or "a new process" for process in processes if process.is_stopped}
        if (server := process_state(self._server)) is not None and server.is_stopped:
            stopped[self._server] = "tritonserver"
        overdue = {
            process.pid: model
            for model in seen_models(self._runtime)
            for process in (*seen(model, self._runtime), *loading(model, self._runtime))
            if process.overdue_s and process.pid in models
        }
        self._suspected_s = {pid: self._suspected_s.get(pid, -passed) + passed for pid in {**stopped, **overdue}}
        return [
            (pid, f"{stopped[pid]} is stopped" if pid in stopped else f"{overdue[pid]} hangs")
            for pid, seconds in self._suspected_s.items()
            if seconds >= HANGS_S
        ]
