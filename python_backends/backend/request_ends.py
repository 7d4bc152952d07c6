"""How requests end: each is counted once, in whatever model that is, with a line in the server's log. Needs no torch.

A request that `preprocess` hands on has a file in a directory that the models share: whoever removes it counts the
request. A model that has it in hand puts its process into the file's name, so that a request which dies with a process
is counted too.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..common.processes import is_alive
from ..common.runtime_directory import runtime_directory
from ..request.completed import RunId
from .metrics import Counter, Histogram

if TYPE_CHECKING:
    from pathlib import Path

    from ..common.errors import RequestError
    from ..request.completed import CompletedRequest

LOOK_EVERY_S = 2.0
"""After requests whose process died."""

DROPPED_AFTER_S = 600.0
"""Triton drops a request whose client has gone between two models, and says so to nobody."""

SECONDS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 60.0, 120.0, 300.0, 600.0)
"""Buckets for requests: close enough for quantiles."""

OUTCOMES = ("in_time", "late", "shed", "failed", "cancelled", "invalid")
LOST = "lost"
"""The error of those whose process died, and of those that Triton dropped between two models."""

_log = logging.getLogger("swiftdiffusion.requests")


@dataclass(frozen=True)
class Ending:
    """What its end tells of a request.

    Attributes:
        run_id: Random.
        request_id: The client's, if it sent one.
        pipeline: The public model.
        at: When it came, in seconds of the monotonic clock.
        due: When its picture should be there; None without a limit.
        seconds: Stage → what it took, as far as it came.
    """

    run_id: RunId
    request_id: str | None
    pipeline: str
    at: float
    due: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, request: CompletedRequest, **seconds: float) -> Ending | None:
        """That of a request, with what stages after `preprocess` took; None of one that came to no pipeline."""
        arrival = request.arrival
        if arrival is None:
            return None
        stages = {"preprocess": arrival.prepared_s, **seconds}
        return cls(request.run_id, request.request_id, arrival.pipeline, arrival.at, request.due, stages)


class RequestEnds:
    """The ends that one model sees."""

    def __init__(self, directory: Path | None = None) -> None:
        """Opens the directory; None for the server's."""
        self._directory = (directory or runtime_directory()) / "requests"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._finished = Counter("swiftdiffusion_requests_finished_total", "Requests that have ended, by outcome")
        self._failed = Counter("swiftdiffusion_requests_failed_total", "Requests that failed, by error")
        self._seconds = Histogram("swiftdiffusion_request_seconds", "Time from a request to its picture", SECONDS)
        self._held = f"@{os.getpid()}"
        if not _log.handlers:
            _log.addHandler(logging.StreamHandler())  # no lock that processes share, unlike the server's logger
            _log.setLevel(logging.INFO)
            _log.propagate = False

    def expect(self, pipeline: str) -> None:
        """Shows a pipeline's outcomes before there are any."""
        for outcome in OUTCOMES:
            self._finished.add(0.0, pipeline=pipeline, outcome=outcome)
        self._failed.add(0.0, pipeline=pipeline, error=LOST)

    def accept(self, ending: Ending) -> None:
        """A request goes on to the other models."""
        (self._directory / ending.run_id).write_text(json.dumps(asdict(ending)), "utf-8")

    def take(self, run_id: str) -> None:
        """This process has a request in hand."""
        self._rename(run_id, run_id + self._held)

    def hand_on(self, run_id: str) -> None:
        """It has not any more."""
        self._rename(run_id + self._held, run_id)

    def has_ended(self, run_id: str) -> bool:
        """Whether a request has ended that was handed on to the model which ends it."""
        # In this order: that model takes it by renaming its file, and does not hand it on.
        return not (self._directory / run_id).exists() and not any(self._directory.glob(f"{run_id}@*"))

    def picture(self, ending: Ending) -> None:
        """A request got its picture."""
        now = time.monotonic()
        in_time = ending.due is None or now <= ending.due
        if self._is_first(ending.run_id):
            self._seconds.observe(max(0.0, now - ending.at), pipeline=ending.pipeline)
            self._count(ending, "in_time" if in_time else "late")

    def failed(self, ending: Ending | None, error: RequestError) -> None:
        """A request that was accepted ends with an error."""
        if ending is not None and self._is_first(ending.run_id):
            self._count(ending, error.outcome, type(error).__name__)

    def refused(self, ending: Ending, error: RequestError) -> None:
        """A request ends that was not accepted."""
        self._count(ending, error.outcome, type(error).__name__)

    def look_for_lost(self) -> None:
        """Counts what died with a process, and what Triton dropped, from now on, in a thread."""

        def look() -> None:
            while True:
                time.sleep(LOOK_EVERY_S)
                self.count_lost()

        threading.Thread(target=look, name="lost requests", daemon=True).start()

    def count_lost(self) -> None:
        """Requests whose process has died have failed; those that nobody had in hand for long are cancelled."""
        for path in self._directory.iterdir():
            _, held, pid = path.name.partition("@")
            try:
                lost = not is_alive(int(pid)) if held else time.time() - path.stat().st_ctime > DROPPED_AFTER_S
                text = path.read_text("utf-8") if lost else ""
                if lost:
                    path.unlink()
            except FileNotFoundError:  # it goes on, or has ended
                continue
            if text:
                with suppress(ValueError):  # its process died while it wrote
                    self._count(Ending(**json.loads(text)), "failed" if held else "cancelled", LOST)

    def _is_first(self, run_id: str) -> bool:
        """Whether a request is counted for the first time, as now it must be."""
        for name in (run_id + self._held, run_id):
            try:
                (self._directory / name).unlink()
            except FileNotFoundError:
                continue
            return True
        return False

    def _rename(self, name: str, to: str) -> None:
        try:
            (self._directory / name).rename(self._directory / to)
        except FileNotFoundError:  # counted already, or no request of a client's
            return

    def _count(self, ending: Ending, outcome: str, error: str | None = None) -> None:
        self._finished.add(pipeline=ending.pipeline, outcome=outcome)
        if outcome == "failed":
            self._failed.add(pipeline=ending.pipeline, error=error or "")
        told = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "pipeline": ending.pipeline,
            "run": ending.run_id,
            "id": json.dumps(ending.request_id),
            "outcome": outcome,
            **({} if error is None else {"error": error}),
            **{f"{stage}_s": f"{seconds:.3f}" for stage, seconds in ending.seconds.items()},
            "total_s": f"{time.monotonic() - ending.at:.3f}",
        }
        _log.info("request %s", " ".join(f"{key}={value}" for key, value in told.items()))
