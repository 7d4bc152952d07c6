"""Models that are loaded again: each by a thread of its own, later and later where that does not help."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import LauncherError
from .loading import cleaned
from .watch_status import Down

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
"""After a load that failed, or a process that died again; doubled after each further one."""

STEADY_S = 10.0
"""A model that lives for so long after it was loaded again does not die again and again."""

Load = Callable[[str, float], None]
"""Loads a model, by name, within so many seconds; LauncherError if it does not."""


@dataclass
class _Heal:
    """A model that is being loaded again, or will be."""

    reason: str
    began: float
    since: float = field(default_factory=time.time)
    thread: threading.Thread | None = None
    loads: int = 0
    tries: int = 0
    again_at: float = 0.0

    @property
    def is_on_its_way(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


class Heals:
    """Those of one server; true while there are any.

    Attributes:
        counts: how often each model was loaded again.
    """

    def __init__(self, say: Callable[[str], None], load_timeout_s: float, clock: Callable[[], float]) -> None:
        """None yet.

        Args:
            say: told in sentences of what happens.
            load_timeout_s: how long loading a model may take.
            clock: seconds.
        """
        self.counts: dict[str, int] = {}
        self._say, self._load_timeout_s, self._clock = say, load_timeout_s, clock
        self._heals: dict[str, _Heal] = {}
        self._ended: dict[str, tuple[float, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._heals)

    def __contains__(self, model: str) -> bool:
        return model in self._heals

    @property
    def on_their_way(self) -> set[str]:
        """Models that are being loaded now."""
        return {model for model, heal in self._heals.items() if heal.is_on_its_way}

    @property
    def down(self) -> dict[str, Down]:
        """Models that are, for others to know."""
        return {model: Down(heal.reason, heal.since, heal.tries) for model, heal in self._heals.items()}

    def forget_all(self) -> None:
        """The server has ended, and loads all itself when it is started again."""
        self._heals = {}

    def forget(self, model: str) -> None:
        """It is not to be loaded any more."""
        self._heals.pop(model, None)

    def load_if_due(self, model: str, reason: str, load: Load) -> None:
        """Begins to load a model that is down, if it is not on its way, and it is time to.

        Args:
            model: its name.
            reason: why it is down.
            load: how it is loaded.
        """
        heal, now = self._heals.get(model), self._clock()
        if heal is None:
            ended, loads = self._ended.get(model, (-math.inf, 0))
            heal = self._heals[model] = _Heal(cleaned(reason), now, loads=loads if now - ended < STEADY_S else 0)
            heal.again_at = now + _pause_s(heal.loads)
            self._say(f"{model} is down and is loaded again: {heal.reason}")
        if heal.is_on_its_way or now < heal.again_at:
            return
        heal.thread = threading.Thread(
            target=self._load_again, args=(model, heal, load), name=f"heal-{model}", daemon=True
        )
        heal.thread.start()

    def came_up(self, model: str) -> None:
        """A model that was down is up."""
        heal, now = self._heals.pop(model), self._clock()
        self._ended[model] = now, heal.loads
        self.counts[model] = self.counts.get(model, 0) + 1
        self._say(f"{model} is loaded again, after {now - heal.began:.1f} s")

    def _load_again(self, model: str, heal: _Heal, load: Load) -> None:
        heal.loads += 1
        pause_s = _pause_s(heal.loads)
        try:
            load(model, self._load_timeout_s)
        except LauncherError as error:
            if self._heals.get(model) is heal:  # else tritonserver has ended meanwhile
                heal.tries, heal.reason = heal.tries + 1, cleaned(str(error))
                self._say(f"{model} does not load, and is tried again in {pause_s:g} s: {heal.reason}")
        finally:
            heal.again_at = self._clock() + pause_s


def _pause_s(loads: int) -> float:
    """After so many in a row."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (loads - 1)) if loads else 0.0
