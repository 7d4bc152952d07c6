"""Cancelling by REQUEST_ID: files in the directory that the models of a server share.

Triton does not tell a step inside an ensemble that its client cancelled. So the model `cancel` leaves a flag, and a
denoiser looks for it at every step, at the first one too: a request that still waits for a place is cancelled as well.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from ..common.errors import InvalidRequestError
from ..common.processes import is_alive
from ..common.runtime_directory import runtime_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORGOTTEN_AFTER_S = 3600.0
"""Files of requests that never came to a denoiser are removed after so long."""


class RequestRegistry:
    """Requests that have a REQUEST_ID: which wait, which run and in which process, which are cancelled.

    A file is named after a request's id and its run, so that nothing that concerns one request touches another that
    came with the same id.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """Opens the registry in a directory; None for that of the server."""
        directory = runtime_directory() if directory is None else directory
        self._waiting, self._running = directory / "waiting", directory / "running"
        self._cancelled = directory / "cancelled"
        for folder in (self._waiting, self._running, self._cancelled):
            folder.mkdir(mode=0o700, exist_ok=True)

    def accept(self, request_id: str, run_id: str) -> None:
        """Notes a new request, which has no place in a denoiser yet; forgets what dead processes left."""
        with self._alone():
            for file in self._running.iterdir():
                if not _has_owner(file):
                    file.unlink()
            for folder in (self._waiting, self._cancelled):
                _remove_old(folder)
            (self._waiting / _file_name(request_id, run_id)).touch()

    def enter(self, request_id: str, run_id: str) -> None:
        """Registers a request as running in this process.

        Raises:
            InvalidRequestError: If another request with this id runs.
        """
        with self._alone():
            if self._running_files(request_id):
                raise InvalidRequestError(
                    f'REQUEST_ID is "{request_id}", which a running request has; allowed: an id of its own'
                )
            name = _file_name(request_id, run_id)
            (self._running / name).write_text(str(os.getpid()), "ascii")
            (self._waiting / name).unlink(missing_ok=True)

    def leave(self, request_id: str, run_id: str) -> bool:
        """Forgets a request that ends; whether it was cancelled, which its client has been told."""
        name = _file_name(request_id, run_id)
        with self._alone():
            cancelled = (self._cancelled / name).exists()
            for folder in (self._waiting, self._running, self._cancelled):
                (folder / name).unlink(missing_ok=True)
        return cancelled

    def is_cancelled(self, request_id: str, run_id: str) -> bool:
        """Whether a request is to end."""
        return (self._cancelled / _file_name(request_id, run_id)).exists()

    def cancel(self, request_id: str) -> bool:
        """Flags every request of that id; whether any runs, or waits for its place and was not flagged yet.

        Triton may drop a waiting request whose client has gone before a denoiser sees it: after the flag it counts as
        gone.
        """
        with self._alone():
            waiting = list(self._waiting.glob(_file_name(request_id, None)))
            found = [*waiting, *self._running_files(request_id)]
            for file in found:
                (self._cancelled / file.name).touch()
            for file in waiting:
                file.unlink()
        return bool(found)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process or thread changes the registry."""
        lock = os.open(self._running, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _running_files(self, request_id: str) -> list[Path]:
        files = self._running.glob(_file_name(request_id, None))
        return [file for file in files if _has_owner(file)]


def _remove_old(folder: Path) -> None:
    """Removes what no denoiser came to: Triton drops a request whose client has gone."""
    for file in folder.iterdir():
        try:
            if time.time() - file.stat().st_mtime > FORGOTTEN_AFTER_S:
                file.unlink(missing_ok=True)
        except FileNotFoundError:  # its request ended meanwhile
            continue


def _file_name(request_id: str, run_id: str | None) -> str:
    """Of one run; for None a pattern that all runs of the id match."""
    return f"{_digest(request_id)}.{'*' if run_id is None else _digest(run_id)}"


@lru_cache(256)  # a denoiser asks for its requests at every step
def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _has_owner(file: Path) -> bool:
    """Whether the process lives that runs a request."""
    pid = file.read_text("ascii")
    return pid.isdecimal() and is_alive(int(pid))  # empty: its process died before it wrote
