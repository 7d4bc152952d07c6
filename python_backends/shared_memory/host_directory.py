"""Where a server's host cache lies, and how those of dead servers go. Needs no torch.

Every process that uses the directory holds a shared lock on a file in it. So a directory whose lock is free belongs to
a server that is gone, whichever way it went.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import stat
from functools import cache
from pathlib import Path

from ..common.runtime_directory import runtime_directory

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
PREFIX, OWNER = "swiftdiffusion_loras_", "owner.lock"


def host_cache_directory(runtime: Path | None = None) -> Path:
    """The directory of what all processes of one server share, made if need be: LoRAs, and below it pictures.

    It is in shared memory, or in the runtime directory where the machine gives none. While this process lives, nobody
    takes it for a left-over.

    Args:
        runtime: Runtime directory of the server; None for this process's server.

    Raises:
        PermissionError: If somebody else has a directory of that name.
    """
    runtime = runtime_directory() if runtime is None else runtime
    directory = _shared_directory(runtime)
    if not os.access(directory.parent, os.W_OK | os.X_OK):
        directory = runtime / "loras"
    while not _hold(directory):
        continue  # removed between its making and our lock
    return directory


def remove_host_cache(runtime: Path) -> None:
    """Removes the host cache of a server that has ended."""
    _remove(_shared_directory(runtime))


def remove_stale_host_caches() -> None:
    """Removes this user's host caches that no living process holds."""
    if not SHARED_MEMORY.is_dir():
        return
    for directory in SHARED_MEMORY.glob(f"{PREFIX}*"):
        if not _is_own_directory(directory):
            continue
        try:
            descriptor = os.open(directory / OWNER, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # its server ended meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink == 0:  # removed by another, and perhaps made anew, before the lock
                continue
            _remove(directory)
            logger.info("removed the host cache of a server that is gone: %s", directory)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def _shared_directory(runtime: Path) -> Path:
    return SHARED_MEMORY / f"{PREFIX}{hashlib.sha256(os.fsencode(runtime.absolute())).hexdigest()[:24]}"


def _hold(directory: Path) -> bool:
    """Makes the directory and keeps a shared lock in it until this process ends; False if it was removed meanwhile."""
    directory.mkdir(mode=0o700, exist_ok=True)
    try:
        if not _is_own(directory.lstat()):
            raise PermissionError(f"{directory} is not a directory of this user alone; remove it")
        return _lock(directory)
    except FileNotFoundError:
        return False


@cache
def _held() -> dict[Path, int]:
    """Descriptors of the locks that this process holds."""
    return {}


def _lock(directory: Path) -> bool:
    descriptor = os.open(directory / OWNER, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if os.fstat(descriptor).st_nlink == 0:
        os.close(descriptor)
        return False
    previous = _held().pop(directory, None)
    if previous is not None:
        os.close(previous)
    _held()[directory] = descriptor
    return True


def _is_own_directory(path: Path) -> bool:
    try:
        return _is_own(path.lstat())
    except FileNotFoundError:
        return False


def _is_own(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def _remove(directory: Path) -> None:
    if not _is_own_directory(directory):
        return
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        logger.debug("%s is removed by another launcher", directory)
    except OSError as error:
        logger.warning("%s stays: %s", directory, error)
