"""The processes that a server's models have, seen from outside."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from ..common.processes import process_state
from .processes import PROC

_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class ModelProcess:
    """A Python backend's process that lives.

    Attributes:
        pid: its id.
        model: whose it is; "" where it has not begun to be one, or is none.
        is_stopped: whether a signal holds it.
    """

    pid: int
    model: str
    is_stopped: bool


def model_processes(server: int) -> list[ModelProcess]:
    """Those that a server started and that live; dead ones, which it leaves behind as zombies, are not among them.

    Args:
        server: tritonserver's process id.
    """
    found = []
    for pid in _children(server):
        state, model = process_state(pid), _model_of(pid)
        if state is not None and state.is_alive:
            found.append(ModelProcess(pid, model, state.is_stopped))
    return found


def still_living(processes: Iterable[ModelProcess]) -> list[ModelProcess]:
    """Those that live still, as they are now; costs less than to find them."""
    found = []
    for process in processes:
        state = process_state(process.pid)
        if state is not None and state.is_alive:
            found.append(replace(process, is_stopped=state.is_stopped))
    return found


def has_dead_process(server: int) -> bool:
    """Whether a process that a server started has died, and the server has not taken note of it."""
    states = [process_state(pid) for pid in _children(server)]
    return any(state is not None and not state.is_alive for state in states)


def instances(config: dict[str, Any]) -> int:
    """Processes of a Python backend's model, by its completed configuration; 0 for other models."""
    if config.get("backend") != "python":
        return 0
    groups = config.get("instance_group", ())
    return sum(group.get("count", 1) * max(1, len(group.get("gpus", ()))) for group in groups)


def is_python(repository: Path, model: str) -> bool:
    """Whether a model is a Python backend's."""
    try:
        config = (repository / model / "config.pbtxt").read_text("utf-8")
    except OSError:
        return False
    return re.search(r'^backend: *"python"', config, re.MULTILINE) is not None


def _children(parent: int) -> list[int]:
    """By the kernel's own list, where it keeps one."""
    lists = []
    for path in (PROC / str(parent) / "task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            lists.append(path.read_text("ascii"))
    if lists:
        return [int(pid) for text in lists for pid in text.split()]
    return [pid for pid in psutil.pids() if (state := process_state(pid)) is not None and state.parent == parent]


def _model_of(pid: int) -> str:
    """The model whose stub a process is: its first argument is `…/MODEL/VERSION/model.py`."""
    try:
        arguments = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    if len(arguments) < 2 or _STUB.encode() not in arguments[0]:
        return ""
    return Path(arguments[1].decode("utf-8", "surrogateescape")).parent.parent.name
