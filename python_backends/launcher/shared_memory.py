"""Ownership and clean-up of the regions in /dev/shm.

Triton's Python backend makes one region per instance, called `<shm-region-prefix-name><uuid>`, and names it on the
command line of the instance's stub process. Every launch has its own prefix that holds the server's pid, so whether
a region is still in use can be told from its name alone.
"""

import logging
import os
import re
import shutil
import signal
import stat
from pathlib import Path

import psutil

from .errors import SharedMemoryError
from .free_memory import MIB
from .ownership import is_own
from .processes import command_line, pid_namespace
from .repository_weights import processes_of

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
_NAME = re.compile(r"(?P<prefix>swiftdiffusion_(?P<namespace>\d+)_(?P<pid>\d+)_)")


def region_prefix(pid: int | str) -> str:
    """Start of the names of all regions of the server `pid` (or of a shell expression for it, such as `$$`)."""
    return f"swiftdiffusion_{pid_namespace()}_{pid}_"


def check_room(repository: Path, each_mib: int) -> None:
    """Does nothing if every process of a repository's models can have its region.

    Raises:
        SharedMemoryError: there is less room.
    """
    files = sorted(repository.glob("*/config.pbtxt"))
    needed, free = each_mib * sum(map(processes_of, files)), shutil.disk_usage(SHARED_MEMORY).free
    if free < needed * MIB:
        raise SharedMemoryError(
            f"{SHARED_MEMORY} has {free / MIB:.1f} MiB free; the repository's processes begin with {needed} MiB, and "
            "`swiftdiffusion doctor` says what more is good: `docker run --shm-size=2g`, or mount it larger"
        )


def remove_regions(prefix: str) -> list[str]:
    """Removes this user's regions whose names start with `prefix`; returns their names."""
    removed = []
    for path in sorted(SHARED_MEMORY.glob(f"{prefix}*")):
        if not is_own(path, stat.S_ISREG):
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s stays: %s", path, error)
        else:
            removed.append(path.name)
    return removed


def remove_stale_regions() -> list[str]:
    """Removes what servers that are dead left behind: regions, and stub processes that were stopped when they died.

    Regions of living servers, of servers in other pid namespaces and of other users are not touched.

    Returns:
        The names of the removed regions.
    """
    removed = []
    matches = (_NAME.match(path.name) for path in SHARED_MEMORY.iterdir() if is_own(path, stat.S_ISREG))
    prefixes = {match["prefix"]: match for match in matches if match is not None}
    for prefix, match in prefixes.items():
        if int(match["namespace"]) != pid_namespace() or prefix in command_line(int(match["pid"])):
            continue
        _kill_stubs(prefix)
        removed += remove_regions(prefix)
    if removed:
        logger.info("removed %d shared-memory regions of a server that is gone", len(removed))
    return removed


def _kill_stubs(prefix: str) -> None:
    for pid in psutil.pids():
        arguments = command_line(pid)
        if prefix in arguments and "triton_python_backend_stub" in arguments.partition(" ")[0]:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # gone, or another user's: not one of this server
                continue
            logger.warning("killed process %d, a stub of a server that is gone", pid)
