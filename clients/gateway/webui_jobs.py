"""What runs for A1111's API: its `progress` and `interrupt` speak of a caller's own pictures."""

import base64
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..client.result import GenerationResult
from .runs import Run


@dataclass(eq=False)
class Job:
    """The pictures of one request.

    Attributes:
        caller: whose they are.
        task_id: what that calls them; None: nothing.
        runs: one for each.
        began: in seconds since 1970.
        interrupted: whether the caller has ended them.
    """

    caller: str
    task_id: str | None
    runs: Sequence[Run]
    began: float = field(default_factory=time.time)
    interrupted: bool = False

    @property
    def done(self) -> float:
        """The part of it that is done, 0 to 1."""
        parts = [1.0 if run.end else run.progress.step / run.progress.of if run.progress else 0.0 for run in self.runs]
        return sum(parts) / len(parts)

    def state(self, with_picture: bool) -> dict[str, Any]:
        """What `progress` answers."""
        going = [run for run in self.runs if run.end is None]
        first = going[0] if going else self.runs[-1]
        done, elapsed = self.done, time.time() - self.began
        picture = first.preview if with_picture else None
        return {
            "progress": round(done, 4),
            "eta_relative": round(elapsed * (1 - done) / done, 3) if done else 0.0,
            "state": {
                **IDLE["state"],
                "interrupted": self.interrupted,
                "job": self.task_id or "",
                "job_count": len(going),
                "job_no": len(self.runs) - len(going),
                "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(self.began)),
                "sampling_step": first.progress.step if first.progress else 0,
                "sampling_steps": first.progress.of if first.progress else first.request.steps or 0,
            },
            "current_image": None if picture is None else base64.b64encode(picture).decode("ascii"),
            "textinfo": None,
        }


IDLE: dict[str, Any] = {
    "progress": 0.0,
    "eta_relative": 0.0,
    "state": {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "",
        "job_count": 0,
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    },
    "current_image": None,
    "textinfo": None,
}
"""What `progress` answers to who has nothing on its way."""


class Jobs:
    """Those of all callers."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    @contextmanager
    def begun(self, job: Job) -> Iterator[None]:
        """While it runs."""
        self._jobs.append(job)
        try:
            yield
        finally:
            self._jobs.remove(job)

    def of(self, caller: str, task_id: str | None = None) -> list[Job]:
        """A caller's, the oldest first; only that one, if it is named."""
        return [job for job in self._jobs if job.caller == caller and task_id in (None, job.task_id)]

    def interrupt(self, caller: str, task_id: str | None = None) -> None:
        """Ends a caller's pictures; those that are ready stay."""
        for job in self.of(caller, task_id):
            job.interrupted = True
            for run in job.runs:
                if not isinstance(run.end, GenerationResult):
                    run.cancel()
