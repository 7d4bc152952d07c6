"""What a watcher tells others: which models are down and why, what was loaded again, how often the server started."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..common.filesystem import replace_text
from ..common.runtime_directory import LOOK_FILE, WATCH_FILE


@dataclass(frozen=True)
class Down:
    """A model that is down.

    Attributes:
        reason: why, in the server's words where it has any.
        since: since when, in Unix time.
        tries: loads of it that failed since.
    """

    reason: str
    since: float
    tries: int


@dataclass
class WatchStatus:
    """All that a watcher tells.

    Attributes:
        pid: the watcher's process.
        down: the models that are.
        heals: how often each model was loaded again.
        restarts: how often the server was started again.
    """

    pid: int = field(default_factory=os.getpid)
    down: dict[str, Down] = field(default_factory=dict)
    heals: dict[str, int] = field(default_factory=dict)
    restarts: int = 0

    def to_json(self) -> str:
        """For `write_status`."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, runtime: Path) -> "WatchStatus | None":
        """What the last watcher of a server told; None if there was none."""
        try:
            told: Mapping = json.loads((runtime / WATCH_FILE).read_text("utf-8"))
        except FileNotFoundError:
            return None
        return cls(**{**told, "down": {model: Down(**down) for model, down in told["down"].items()}})


def tell_of_a_look(runtime: Path) -> None:
    """A server was looked after, now: a file's time says so."""
    (runtime / LOOK_FILE).touch()


def write_status(runtime: Path, text: str) -> None:
    """Puts a status, as JSON, where `WatchStatus.read` finds it."""
    replace_text(runtime / WATCH_FILE, text)
