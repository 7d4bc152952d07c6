"""Process groups, parent death and liveness on Linux."""

import ctypes
import os
import signal
import time
from pathlib import Path

import psutil

PROC = Path("/proc")
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
KILL_WAIT_SECONDS = 5.0
_libc = ctypes.CDLL(None, use_errno=True)


def terminate_with_parent() -> None:
    """Asks the kernel to send SIGTERM to this process when its parent ends; survives `exec`.

    For `subprocess`'s `preexec_fn`. The kernel means the parent *thread*: start such children from one that stays.
    """
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def pid_namespace() -> int:
    """Inode of this process's pid namespace: a pid means nothing outside it (containers may share /dev/shm)."""
    return (PROC / "self/ns/pid").stat().st_ino


def command_line(pid: int) -> str:
    """The process's arguments joined by spaces, "" if it is gone, a zombie or hidden from this user."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def any_has_variable(name: str, value: str) -> bool:
    """Whether a process that this user may look into was started with an environment variable."""
    wanted = os.fsencode(f"{name}={value}")
    for pid in psutil.pids():
        try:
            if wanted in (PROC / str(pid) / "environ").read_bytes().split(b"\0"):
                return True
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return False


def group_members(group: int) -> list[int]:
    """Ids of the living (not zombie) processes of a process group."""
    members = []
    for pid in psutil.pids():
        try:
            stat = (PROC / str(pid) / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        state, _parent, process_group = stat.rpartition(")")[2].split()[:3]  # the name before may hold anything
        if int(process_group) == group and state != "Z":
            members.append(pid)
    return members


def signal_group(group: int, number: signal.Signals) -> None:
    """Sends a signal to every process of a group; a group without processes is fine."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def kill_group(group: int) -> None:
    """Kills every process of a group, stopped ones too, and waits until they are gone."""
    signal_group(group, signal.SIGKILL)
    deadline = time.monotonic() + KILL_WAIT_SECONDS
    while group_members(group) and time.monotonic() < deadline:
        time.sleep(0.02)
