"""Entries are written beside the steps, by a thread: what it is too slow for is dropped, no step waits for it."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .template_store import TemplateStore
    from .token_memory import TokenMemory

logger = logging.getLogger(__name__)

MOST_JOBS = 64
"""That wait, of entries that are only to be copied."""


@dataclass(frozen=True)
class _Job:
    name: str
    values: Sequence[torch.Tensor]
    mask: torch.Tensor
    near: bool
    ready: torch.cuda.Event | None

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.values)


class TemplateWriter:
    """Writes what steps hand over.

    Attributes:
        store: Where it goes.
        count: As it was given.
    """

    def __init__(
        self,
        store: TemplateStore,
        memory: TokenMemory,
        count: Callable[[str, float], None] = lambda _what, _amount: None,
    ) -> None:
        """Starts the thread with the first entry.

        Args:
            store: Where they go.
            memory: For what waits to be written.
            count: Told how many entries were `written` or `dropped`, and how many `bytes` written.
        """
        self.store, self._memory, self.count = store, memory, count
        self._starting = threading.Lock()
        self._jobs: SimpleQueue[_Job | Path | threading.Event] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stream: torch.cuda.Stream | None = None

    def has_room(self, nbytes: int) -> bool:
        """Whether so much could be handed over now."""
        return nbytes <= self._memory.free

    def put(self, name: str, values: Sequence[torch.Tensor], mask: torch.Tensor, near: bool = False) -> bool:
        """Hands an entry over; whether there was room.

        Args:
            name: Of a track, and a timestep.
            values: By block, [tokens, width], which nobody changes any more.
            mask: [h, w]: where they are of something else than the template.
            near: Whether it is for the fastest tier alone.
        """
        ready = None
        if values[0].is_cuda:
            ready = torch.cuda.Event()
            ready.record()
        job = _Job(name, values, mask, near, ready)
        if not self._memory.take(job.nbytes):
            self.count("dropped", 1)
            return False
        self._start()
        self._jobs.put(job)
        return True

    def bring_near(self, path: Path) -> None:
        """Has an entry of a slower tier copied into the fastest, unless there is much to do."""
        if not self.store.is_near(path) and self._jobs.qsize() < MOST_JOBS:
            self._start()
            self._jobs.put(path)

    def flush(self) -> None:
        """Waits until what was handed over is written."""
        if self._thread is not None:
            done = threading.Event()
            self._jobs.put(done)
            done.wait()

    def _start(self) -> None:
        with self._starting:  # by the engine's thread, and by that of loads
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, name="templates", daemon=True)
                self._thread.start()

    def _live(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                match job:
                    case threading.Event():
                        job.set()
                    case Path():
                        self.store.bring_near(job)
                    case _Job():
                        self._write(job)
            except Exception:
                logger.exception("an entry of a picture could not be written")
            del job

    def _write(self, job: _Job) -> None:
        try:
            if job.ready is not None:
                self._stream = self._stream or torch.cuda.Stream(job.values[0].device)
                self._stream.wait_event(job.ready)
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                written = self.store.write(job.name, job.values, job.mask, job.near)
            if written is not None:
                self.count("written" if written else "dropped", 1)
                self.count("bytes", written)
        finally:
            self._memory.give_back(job.nbytes)
