"""Whether a process lives, and what it has from its parent. Needs no torch."""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class ProcessState:
    """What the kernel says of a process.

    Attributes:
        letter: `R`, `S`, `D`, `T` …; see proc(5).
        parent: Id of its parent.
        threads: How many it has, those that have ended and wait for the others among them.
        started: When it began, in clock ticks since boot: tells it from a later one of the same id.
    """

    letter: str
    parent: int
    threads: int
    started: int

    @property
    def is_alive(self) -> bool:
        """Whether it is more than what its parent has not taken note of, a zombie.

        A process whose first thread ended before the others looks like one while they end.
        """
        return self.letter not in "ZX" or (self.letter == "Z" and self.threads > 1)

    @property
    def is_stopped(self) -> bool:
        """Whether a signal such as SIGSTOP holds it."""
        return self.letter == "T"


def process_state(pid: int) -> ProcessState | None:
    """The state of a process, None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return ProcessState(fields[0], int(fields[1]), int(fields[17]), int(fields[19]))


def parent_name() -> str:
    """Names this process's parent: no other process of a machine is called so, nor was, nor of another boot."""
    parent = os.getppid()
    state = process_state(parent)
    return f"{namespace()} {parent} {0 if state is None else state.started}"


@cache
def namespace() -> str:
    """Names that in which process ids mean what they mean here: a container, and a boot of its machine."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"


def close_inherited_connections() -> None:
    """Closes the network connections that this process had from its parent when it was forked.

    Triton forks models' processes with all that it has open: a client whose connection one of them shares would not see
    that the server closes it.
    """
    for path in Path("/proc/self/fd").iterdir():
        descriptor = int(path.name)
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
        except OSError:  # that of the listing itself
            continue
        inherited = socket.socket(fileno=descriptor)
        if inherited.family in (socket.AF_INET, socket.AF_INET6):
            inherited.close()
        else:
            inherited.detach()


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    state = process_state(pid)
    return state is not None and state.is_alive
