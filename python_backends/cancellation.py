"""Cancelling by REQUEST_ID: a file per running request, which cancelling removes.

Triton does not tell a step inside an ensemble that its client cancelled; so the models of one server share a directory.
A request is registered while it runs, hence nothing stays behind, and cancelling an unknown id has no effect.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from .request import InvalidRequestError


class RunningRequests:
    """The requests with a REQUEST_ID that one denoiser is running."""

    def __init__(self, model_name: str) -> None:
        """Starts empty, whatever an earlier instance of the model left."""
        self._directory = _directory() / model_name
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in self._directory.iterdir():
            file.unlink(missing_ok=True)

    def enter(self, request_id: str) -> None:
        """Registers a request.

        Raises:
            InvalidRequestError: If the id is taken.
        """
        try:
            (self._directory / _file_name(request_id)).touch(exist_ok=False)
        except FileExistsError:
            raise InvalidRequestError(
                f'REQUEST_ID is "{request_id}", which a running request has; allowed: an id of its own'
            ) from None

    def is_cancelled(self, request_id: str) -> bool:
        """Whether a registered request was cancelled."""
        return not (self._directory / _file_name(request_id)).exists()

    def leave(self, request_id: str) -> None:
        """Forgets a request."""
        (self._directory / _file_name(request_id)).unlink(missing_ok=True)


def cancel_request(request_id: str) -> bool:
    """Cancels the request in whichever denoiser of this server runs it; False if none does."""
    cancelled = False
    for file in _directory().glob(f"*/{_file_name(request_id)}"):
        try:
            file.unlink()
            cancelled = True
        except FileNotFoundError:  # finished meanwhile
            continue
    return cancelled


def _directory() -> Path:
    """A directory of this server's own: its models' processes are all children of the server."""
    return Path(tempfile.gettempdir()) / f"swiftdiffusion-{os.getuid()}-{os.getppid()}"


def _file_name(request_id: str) -> str:
    return hashlib.sha256(request_id.encode("utf-8")).hexdigest()
