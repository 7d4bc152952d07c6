"""Cancelling by REQUEST_ID: files in the directory that the models of a server share.

Triton does not tell a step inside an ensemble that its client cancelled. So the model `cancel` leaves a flag, and a
denoiser looks for it at every step, at the first one too: a request that still waits for a place is cancelled as well.
`preprocess` takes away a flag that is older than the request.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import InvalidRequestError
from .runtime import runtime_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORGOTTEN_AFTER_S = 3600.0
"""Files of requests that never came to a denoiser are removed after so long."""


class RequestRegistry:
    """Requests that have a REQUEST_ID: which wait, which run and in which process, which are cancelled."""

    def __init__(self, directory: Path | None = None) -> None:
        """Opens the registry in a directory; None for that of the server."""
        directory = runtime_directory() if directory is None else directory
        self._waiting, self._running = directory / "waiting", directory / "running"
        self._cancelled = directory / "cancelled"
        for folder in (self._waiting, self._running, self._cancelled):
            folder.mkdir(mode=0o700, exist_ok=True)

    def accept(self, request_id: str) -> None:
        """Notes a new request, which has no place in a denoiser yet; a flag from before does not concern it."""
        with self._alone():
            _remove_old(self._waiting)
            (self._waiting / _file_name(request_id)).touch()
            if not self._runs(request_id):
                (self._cancelled / _file_name(request_id)).unlink(missing_ok=True)

    def refuse(self, request_id: str) -> None:
        """Forgets a request that was accepted and ends before it comes to a denoiser."""
        (self._waiting / _file_name(request_id)).unlink(missing_ok=True)

    def enter(self, request_id: str) -> None:
        """Registers a request as running in this process.

        Raises:
            InvalidRequestError: If a request with this id runs.
        """
        with self._alone():
            (self._waiting / _file_name(request_id)).unlink(missing_ok=True)
            if self._runs(request_id):
                raise InvalidRequestError(
                    f'REQUEST_ID is "{request_id}", which a running request has; allowed: an id of its own'
                )
            (self._running / _file_name(request_id)).write_text(str(os.getpid()), "ascii")

    def leave(self, request_id: str) -> None:
        """Forgets a request that ended."""
        with self._alone():
            for folder in (self._running, self._cancelled):
                (folder / _file_name(request_id)).unlink(missing_ok=True)

    def is_cancelled(self, request_id: str) -> bool:
        """Whether a request is to end."""
        return (self._cancelled / _file_name(request_id)).exists()

    def cancel(self, request_id: str) -> bool:
        """Flags a request; whether it runs, or waits for its place and was not flagged yet.

        Triton may drop a waiting request whose client has gone before a denoiser sees it: after the flag it counts as
        gone.
        """
        with self._alone():
            _remove_old(self._cancelled)
            (self._cancelled / _file_name(request_id)).touch()
            waiting = self._waiting / _file_name(request_id)
            waits = waiting.exists()
            waiting.unlink(missing_ok=True)
            return waits or self._runs(request_id)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process or thread changes the registry."""
        lock = os.open(self._running, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _runs(self, request_id: str) -> bool:
        file = self._running / _file_name(request_id)
        return file.exists() and _is_alive(file.read_text("ascii"))


def _remove_old(folder: Path) -> None:
    """Removes what no request came for: an unknown id was cancelled, or a request ended before its denoiser."""
    for file in folder.iterdir():
        try:
            if time.time() - file.stat().st_mtime > FORGOTTEN_AFTER_S:
                file.unlink(missing_ok=True)
        except FileNotFoundError:  # its request ended meanwhile
            continue


def _file_name(request_id: str) -> str:
    return hashlib.sha256(request_id.encode("utf-8")).hexdigest()


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):  # ValueError: its process died before it wrote
        return False
    return True
