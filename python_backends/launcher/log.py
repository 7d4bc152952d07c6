"""The server's log: what it says about models, and passing it on while it is written."""

import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_LOADING = re.compile(r'"loading: (?P<model>[^"]+?):\d+"')
_LOADED = re.compile(r"\"successfully loaded '(?P<model>[^']+)'\"")
_FAILED = re.compile(r"\"failed to load '(?P<model>[^']+)'\"")
_ERROR = re.compile(r'^E\d{4} [\d:.]+ \d+ [\w.]+:\d+\] (?P<message>".*")\s*$')


@dataclass(frozen=True)
class ModelEvent:
    """A model began to load, was loaded or failed."""

    model: str
    state: str  # loading, loaded, failed


def model_event(line: str) -> ModelEvent | None:
    """What a line of the log says about a model, None if it says nothing."""
    for pattern, state in ((_LOADING, "loading"), (_LOADED, "loaded"), (_FAILED, "failed")):
        match = pattern.search(line)
        if match:
            return ModelEvent(match["model"], state)
    return None


def loaded_models(log: str) -> dict[str, str]:
    """State by model, in the words of the repository API, as far as a log tells."""
    words = {"loading": "LOADING", "loaded": "READY", "failed": "UNAVAILABLE"}
    events = (model_event(line) for line in log.splitlines())
    return {event.model: words[event.state] for event in events if event is not None}


def error_messages(log: str) -> list[str]:
    """Messages of the error lines of a log, oldest first, their escapes undone."""
    messages = []
    for line in log.splitlines():
        match = _ERROR.match(line)
        if match:
            try:
                messages.append(str(json.loads(match["message"])))
            except json.JSONDecodeError:
                messages.append(match["message"].strip('"'))
    return messages


def read_log(path: Path, start: int = 0) -> str:
    """A log from a byte on; all of it if it is shorter by now, nothing if it is gone."""
    try:
        with path.open("rb") as log:
            log.seek(start if start <= path.stat().st_size else 0)
            return log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def tail(log: str, lines: int) -> str:
    """The last lines of a log, without tables and without the help that follows a refused option."""
    log = log.partition("\nUsage: tritonserver")[0]
    kept = [line for line in log.splitlines() if line and line[0] not in "+|"]
    return "\n".join(kept[-lines:])


class LogFollower:
    """Calls `on_line` with each line that is appended to a file, from a thread of its own, until `close`.

    Args:
        path: the file; it must exist.
        on_line: gets each line without its end.
        truncate_above: empty the file when it has grown past this many bytes and all of it was passed on; for files
            that nobody else reads. The writer must append (O_APPEND); what it writes in the very moment is lost.
    """

    _PAUSE_SECONDS = 0.1

    def __init__(self, path: Path, on_line: Callable[[str], None], truncate_above: int | None = None) -> None:
        self._path = path
        self._on_line = on_line
        self._truncate_above = truncate_above
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="server-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Passes on what is left and ends the thread."""
        self._closed.set()
        self._thread.join()

    def _follow(self) -> None:
        with self._path.open("rb") as log:
            rest = b""
            while True:
                closing = self._closed.is_set()
                data = log.read()
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._on_line(line.decode(errors="replace"))
                if closing:
                    return
                if not data:
                    self._truncate(log)
                    self._closed.wait(self._PAUSE_SECONDS)

    def _truncate(self, log: BinaryIO) -> None:
        read = log.tell()
        if self._truncate_above is not None and read > self._truncate_above and read == self._path.stat().st_size:
            os.truncate(self._path, 0)
            log.seek(0)
