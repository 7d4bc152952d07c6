"""Why a file could not be fetched: for clients, metrics and the log, none of which shall read a URL's secrets."""

from __future__ import annotations

import asyncio
import errno
import traceback
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
from fsspec.exceptions import FSTimeoutError

if TYPE_CHECKING:
    from pathlib import Path

    from .fetch_limits import FetchLimits

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Of the disk that is written to, and of no store."""

TRANSIENT_STATUSES = frozenset({408, 425, 429})


class FetchError(Exception):
    """A file that could not be fetched; the message is for clients and has no URL, which may hold secrets.

    Attributes:
        kind: The class of the reason, for metrics.
        transient: Whether trying again may help.
    """

    def __init__(self, kind: str, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.kind, self.transient = kind, transient


def late(limits: FetchLimits) -> FetchError:
    """The time for a file, all attempts together, is over."""
    return FetchError("timeout", f"its store did not send the file within {limits.timeout_s:g} s", transient=True)


def explain(error: Exception, limits: FetchLimits, target: Path) -> FetchError:
    """What an exception of a store comes to, or of the disk where its file is written."""
    if isinstance(error, FetchError):
        return error
    if isinstance(error, OSError) and (error.errno in DISK_ERRORS or error.filename == str(target)):
        return FetchError("disk", not_kept(error))
    if isinstance(error, FSTimeoutError) and not isinstance(error.__cause__, aiohttp.ServerTimeoutError):
        return late(limits)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return FetchError("timeout", f"its store sent nothing for {limits.read_timeout_s:g} s", transient=True)
    if isinstance(error, aiohttp.ClientResponseError):  # its own words are the store's, who knows the URL
        again = error.status >= 500 or error.status in TRANSIENT_STATUSES
        return FetchError("status", f"its store answers {error.status}", transient=again)
    if isinstance(error, FileNotFoundError):
        return FetchError("not_found", "its store does not have the file")
    if isinstance(error, PermissionError):
        return FetchError("forbidden", "its store does not give the file to this server")
    if isinstance(error, aiohttp.ClientPayloadError):
        return FetchError("truncated", "its store broke off in the middle of the file", transient=True)
    if isinstance(error, aiohttp.ClientSSLError):
        return FetchError("tls", "its store's certificate is not accepted")
    if isinstance(error, aiohttp.ClientConnectionError | ConnectionError):
        return FetchError("connection", "its store cannot be reached", transient=True)
    if isinstance(error, ImportError):
        return FetchError("protocol", f"this server lacks the package for its store: {error}")
    return FetchError("store", f"its store failed with {type(error).__name__}")


def not_kept(error: OSError) -> str:
    """What is told of a file that this server's own disk does not take."""
    return f"this server's disk cache cannot take its file: {error.strerror or type(error).__name__}; try again later"


def host(location: str) -> str:
    """What may be told of a location: protocol and host."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return "a location that is no URL"
    return f"{parts.scheme}://{parts.hostname or ''}"


def places(error: BaseException | None) -> str:
    """Where an exception and its causes arose, without their messages: stores like to name the URL."""
    lines: list[str] = []
    while error is not None:
        lines += [f"{type(error).__name__} in\n", *traceback.format_tb(error.__traceback__)]
        error = error.__cause__ or error.__context__
    return "".join(lines).rstrip()
