"""What every process of a server tells of itself: whether it is ready, and until when what it does should be done.

A record of a few bytes in the runtime directory, mapped into its process: writing costs no system call, and whoever
wants to know reads the file. Times are of the monotonic clock, which all processes of a machine share. Needs no torch.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .processes import process_state
from .runtime_directory import runtime_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

ROOM = "processes"
"""Of the runtime directory: a directory for each model, with a record for each of its processes."""

EXECUTE, ENGINE, DOOR = range(3)
"""What a process does at once: its model's `execute`, and the thread of a shard's engine; or the `execute` of a model
that clients' requests come to, accepted or not."""

SETTLED_S = 0.5
"""After a process is ready in the place of another; by then its server calls it, and not the one before it."""

LOADING_S = 1800.0
"""Longest that a process loads: weights from far away, and kernels or graphs that are compiled."""

_IDENTITY = struct.Struct("=qqd")  # process id, when it began, from when on it can be called, 0 before that is known
_DOING = struct.Struct("=dd")  # until when it should be done, 0 while there is nothing to do; when something was, last
_SIZE = _IDENTITY.size + 3 * _DOING.size


class Pulse:
    """This process's record.

    Args:
        model: Whose process it is.
        instance: Tells it from others of the model.
        runtime: The runtime directory; None takes that of this process's server.

    Raises:
        OSError: If it cannot be written.
    """

    def __init__(self, model: str, instance: str, runtime: Path | None = None) -> None:
        directory = (runtime or runtime_directory()) / ROOM / model
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / instance
        self._loading = self._path.with_name(f".{instance}")
        state = process_state(os.getpid())
        self._identity = (os.getpid(), state.started if state else 0)
        self._loading.unlink(missing_ok=True)
        now = time.monotonic()
        doing = _DOING.pack(now + LOADING_S, now) + 2 * _DOING.pack(0.0, now)
        self._loading.write_bytes(_IDENTITY.pack(*self._identity, 0.0) + doing)
        with self._loading.open("r+b") as file:
            self._record = mmap.mmap(file.fileno(), _SIZE)
            self._file = os.fstat(file.fileno()).st_ino

    def ready(self) -> None:
        """From now on it can be called; where there was a process before it, when the server calls that no more."""
        self.beat()
        settles_s = SETTLED_S if self._path.exists() else 0.0
        _IDENTITY.pack_into(self._record, 0, *self._identity, time.monotonic() + settles_s)
        self._loading.replace(self._path)

    def beat(self) -> None:
        """Says that it lives, where it has nothing else to say."""
        self._write(EXECUTE, 0.0)

    @contextmanager
    def within(self, seconds: float, doing: int = EXECUTE) -> Iterator[None]:
        """While it does something that should take no longer; if it does, it hangs."""
        self.until(seconds, doing)
        try:
            yield
        finally:
            self._write(doing, 0.0)

    def until(self, seconds: float, doing: int = EXECUTE) -> None:
        """What it does should take so long from now on."""
        self._write(doing, time.monotonic() + seconds)

    def close(self) -> None:
        """It ends: nobody is to wait for it; if there is another in its place, that stays."""
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._file:
                self._path.unlink()

    def _write(self, doing: int, until: float) -> None:
        _DOING.pack_into(self._record, _IDENTITY.size + doing * _DOING.size, until, time.monotonic())


@dataclass(frozen=True)
class Seen:
    """A process as its record and the kernel show it.

    Attributes:
        model: Whose process it is.
        pid: Its id.
        is_alive: Whether it lives.
        is_up: Whether it can be called: it is ready, lives and is not stopped.
        overdue_s: Seconds by which it exceeds what it does, 0 if it does not.
        idle_s: Seconds for which it has had nothing to do of what was accepted.
    """

    model: str
    pid: int
    is_alive: bool
    is_up: bool
    overdue_s: float
    idle_s: float


def seen(model: str, runtime: Path | None = None) -> list[Seen]:
    """The processes of a model that were ready once, dead ones too."""
    found = (_look(model, path) for path in _records(model, runtime or runtime_directory()))
    return [each for each in found if each is not None]


def loading(model: str, runtime: Path) -> list[Seen]:
    """The processes of a model that are not ready yet."""
    found = (_look(model, path) for path in (runtime / ROOM / model).glob(".*"))
    return [each for each in found if each is not None]


def seen_models(runtime: Path) -> list[str]:
    """The models that have records."""
    try:
        return sorted(path.name for path in (runtime / ROOM).iterdir())
    except FileNotFoundError:
        return []


def forget_dead(model: str, runtime: Path) -> None:
    """Removes the records of a model's processes that have died: all that it should have are there without them."""
    for path in _records(model, runtime):
        process = _look(model, path)
        if process is not None and not process.is_alive:
            path.unlink(missing_ok=True)


def is_up(model: str) -> bool:
    """Whether a model of this process's server can be called: it has processes, and all of them are up."""
    return bool(ups(model))


def ups(model: str) -> frozenset[int]:
    """Ids of the processes of a model that can be called; none, if one of them is not up."""
    processes = seen(model)
    return frozenset(each.pid for each in processes if all(other.is_up for other in processes))


def _records(model: str, runtime: Path) -> list[Path]:
    try:
        return [path for path in (runtime / ROOM / model).iterdir() if path.name[0] != "."]
    except FileNotFoundError:
        return []


def _look(model: str, path: Path) -> Seen | None:
    try:
        record = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(record) < _SIZE:  # its process is about to write it, or died before it had
        return None
    now = time.monotonic()
    pid, started, ready_at = _IDENTITY.unpack_from(record)
    doing = [_DOING.unpack_from(record, _IDENTITY.size + number * _DOING.size) for number in (EXECUTE, ENGINE, DOOR)]
    state = process_state(pid)
    lives = state is not None and state.is_alive and state.started == started
    return Seen(
        model,
        pid,
        is_alive=lives,
        is_up=0 < ready_at <= now and lives and state is not None and not state.is_stopped,
        overdue_s=max(0.0, *(now - until if until else 0.0 for until, _ in doing)) if lives else 0.0,
        idle_s=_idle_s(doing[:DOOR], now) if lives else math.inf,
    )


def _idle_s(doing: Sequence[tuple[float, float]], now: float) -> float:
    return 0.0 if any(until for until, _ in doing) else now - max(last for _, last in doing)
