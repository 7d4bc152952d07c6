"""The one who heals a server: whatever process of its models dies or hangs, the model is loaded again from outside.

Triton 2.51 never restarts a Python backend's process, and goes on to call its model ready. A load that fails within a
model's own call of `pb_utils.load_model` would end the server; over the repository API it is an answer.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ..backend.dead_models import is_dead
from ..common.pulse import Pulse, forget_dead
from .errors import LauncherError
from .hanging import Hanging
from .heals import Heals
from .model_processes import ModelProcess, has_dead_process, instances, is_python, model_processes, still_living
from .repository_api import ANSWER_S, RepositoryApi, RepositoryApiError, ServerUnreachableError
from .running import WATCH_ROOM, WATCHER
from .watch_lock import WatchLock
from .watch_status import WatchStatus, tell_of_a_look, write_status

INDEX_EVERY_S = 1.0
SILENT_S = 60.0
"""A server that has answered, and answers nothing for so long, hangs."""

STUCK_S, STUCK_AT_FIRST_S = 5.0, 10.0
"""A load that has no process for so long, and no other load has one; or a dead process that the server takes no note of
for so long while it loads all for the first time and answers nothing yet. Triton 2.51 waits without end for a process
that was killed before its first message, and only starting it again helps."""

LOOK_EVERY_S = 0.2
LONGEST_LOOK_S = 1.0
"""Whoever looks may have slept longer: nothing is known of that time."""

DIED = "its process died"


class WatchedServer(Protocol):
    """What is watched."""

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""

    @property
    def api(self) -> RepositoryApi:
        """Its model repository API."""

    @property
    def runtime(self) -> Path:
        """Its models' runtime directory."""

    @property
    def repository(self) -> Path:
        """Its model repository."""

    @property
    def home(self) -> Path:
        """Directory for who watches it."""


class Watcher:
    """Watches one server, also when it is started again, whenever it is told to `look`.

    Attributes:
        status: what it tells others.
    """

    def __init__(
        self,
        server: WatchedServer,
        say: Callable[[str], None],
        load_timeout_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Looks at nothing yet.

        Args:
            server: one that was started.
            say: told in sentences of what happens.
            load_timeout_s: how long loading a model may take.
            clock: seconds.

        Raises:
            LauncherError: it is watched already.
        """
        self._lock = WatchLock(server.home)
        self.status = WatchStatus()
        self._known: set[str] = set()
        self._said: set[str] = set()
        self._heals = Heals(say, load_timeout_s, clock)
        self._server, self._say, self._clock = server, say, clock
        self._begin()

    def _begin(self) -> None:
        """Of a server that was just started."""
        self._pid = self._server.pid
        self._pulse = Pulse(WATCHER, str(os.getpid()), self._server.home / WATCH_ROOM)
        self._pulse.ready()
        self._processes: list[ModelProcess] = []
        self._heals.forget_all()
        self._expected: dict[str, int] = {}
        self._lacking: set[str] = set()
        self._hanging = Hanging(self._pid, self._server.runtime)
        self._silent_s, self._can_heal = 0.0, True
        self._stuck_s: float | None = None
        self._looked_at = self._clock()
        self._index_at = self._looked_at - INDEX_EVERY_S
        self._written = ""

    def look(self) -> None:
        """Kills what hangs, and begins to load again what has died. To be called a few times a second."""
        try:
            self._look()
        except Exception as error:  # noqa: BLE001  the server goes on unwatched, which `probe` tells, and looking too
            self._say_once(f"the watcher cannot look: {type(error).__name__}: {error}")

    def close(self) -> None:
        """It looks no more."""
        self._pulse.close()
        self._lock.close()

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    def _look(self) -> None:
        if self._server.pid != self._pid:
            self._begin()
        now = self._clock()
        since_s, self._looked_at = now - self._looked_at, now
        passed = min(since_s, LONGEST_LOOK_S)
        self._silent_s += min(since_s, LONGEST_LOOK_S + ANSWER_S)
        if self._stuck_s is not None:
            self._stuck_s += passed
        is_due = bool(self._heals) or self._stuck_s is not None or now - self._index_at >= INDEX_EVERY_S
        on_their_way = self._heals.on_their_way  # before processes are counted, by which they are judged
        processes = self._processes = model_processes(self._pid) if is_due else still_living(self._processes)
        for pid, what in self._hanging.found(processes, passed):
            self._say(f"{what} (pid {pid}): it is killed")
            _kill(pid)
        living = Counter(process.model for process in processes)
        lacks = any(living[model] < count for model, count in self._expected.items())
        if lacks or is_due:
            self._index_at = now
            self._compare(living, on_their_way)
        self._pulse.beat()
        if self._can_heal:
            with suppress(OSError):  # a full disk: what is down has to be told all the same
                tell_of_a_look(self._server.runtime)
        self.status.down, self.status.heals = self._heals.down, self._heals.counts
        if (text := self.status.to_json()) != self._written:
            write_status(self._server.runtime, text)
            self._written = text

    def _compare(self, living: Counter[str], on_their_way: set[str]) -> None:
        """What the server says of its models, but for those on their way, with the processes that there are."""
        index = self._index()
        if index is None:
            return
        loading = self._loading(index)
        self._kill_if_stuck(bool(loading) and not any(living[model] for model in loading), STUCK_S)
        lacking = set[str]()
        for entry in index:
            model, state, reason = entry["name"], entry.get("state", ""), entry.get("reason", "")
            if model in on_their_way:
                continue
            if state == "READY":
                self._known.add(model)
                if self._lacks(model, living):
                    lacking.add(model)
                else:
                    self._is_up(model)
                continue
            self._expected.pop(model, None)
            if state == "UNAVAILABLE" and reason == "unloaded":  # on purpose
                self._heals.forget(model)
                self._known.discard(model)
            elif state == "UNAVAILABLE" and self._should_be_there(model, reason):
                self._heals.load_if_due(model, reason, self._server.api.load)
        for model in lacking & self._lacking:  # twice: it may have been loaded or unloaded between two questions
            self._expected.pop(model, None)
            if self._lacks(model, living):
                self._heals.load_if_due(model, DIED, self._server.api.replace)
        self._lacking = lacking

    def _index(self) -> list[dict[str, Any]] | None:
        """What the server says is loaded; one that says nothing for too long is killed."""
        try:
            index = self._server.api.index()
        except ServerUnreachableError:
            if self._silent_s > SILENT_S and self._expected:
                self._say(f"tritonserver has answered nothing for {SILENT_S:.0f} s: it is killed")
                _kill(self._pid)
            if not self._expected:
                self._kill_if_stuck(has_dead_process(self._pid), STUCK_AT_FIRST_S)
            return None
        except RepositoryApiError as error:
            self._say_once(f"tritonserver does not say what is loaded, so that nothing is loaded again: {error}")
            self._can_heal = False
            return None
        self._silent_s, self._can_heal = 0.0, True
        return index

    def _lacks(self, model: str, living: Counter[str]) -> bool:
        """Whether a model has fewer processes than it should; not known, if the server does not say how many."""
        if model not in self._expected:
            try:
                self._expected[model] = instances(self._server.api.config(model))
            except LauncherError:
                return False
        return living[model] < self._expected[model]

    def _should_be_there(self, model: str, reason: str) -> bool:
        """Not if it never loaded, for a reason of its own, or comes back with those that it is composed of."""
        if model in self._heals:
            return True
        return (model in self._known or is_dead(reason)) and not (is_composed(reason) and self._heals)

    def _loading(self, index: Iterable[Mapping[str, Any]]) -> set[str]:
        """Models that should have a process, or get one."""
        loading = {entry["name"] for entry in index if entry.get("state") == "LOADING"}
        return self._heals.on_their_way | {model for model in loading if is_python(self._server.repository, model)}

    def _kill_if_stuck(self, is_stuck: bool, seconds: float) -> None:
        """If it has been for so long."""
        if not is_stuck:
            self._stuck_s = None
        elif self._stuck_s is None:
            self._stuck_s = 0.0
        elif self._stuck_s >= seconds:
            self._say("a process died before its first message, for which tritonserver waits without end: it is killed")
            _kill(self._pid)

    def _is_up(self, model: str) -> None:
        if model in self._heals:
            forget_dead(model, self._server.runtime)
            self._heals.came_up(model)


def is_composed(reason: str) -> bool:
    """Whether a model is down because of those that it is composed of."""
    return "depends on" in reason


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
