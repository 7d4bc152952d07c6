"""What the watcher of a server tells, as metrics of one of its models. Needs no torch."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any

from ..common.filesystem import replace_text
from ..common.pulse import seen_models
from ..common.runtime_directory import LOOK_FILE, LOOKS_WITHIN_S, WATCH_FILE
from .metrics import Counter, Gauge

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

TOLD_FILE = "watch-told.json"
"""In the runtime directory: what the server's counters have, which outlive the process that tells them."""

EVERY_S = 1.0


class WatchMetrics:
    """Tells once at the beginning, and then every `EVERY_S` from a thread of its own."""

    def __init__(self, runtime: Path) -> None:
        """Begins.

        Args:
            runtime: The runtime directory.
        """
        self._watch, self._told, self._runtime = runtime / WATCH_FILE, runtime / TOLD_FILE, runtime
        self._down = Gauge("swiftdiffusion_model_down", "1 while a model's process is dead, by model")
        self._heals = Counter("swiftdiffusion_heals_total", "Models that were loaded again, by model")
        self._restarts = Counter("swiftdiffusion_restarts_total", "Starts of tritonserver after the first")
        self._watched = Counter("swiftdiffusion_watched_seconds_total", "Time in which the server was looked after")
        self._looks, self._looked_at, self._seen_at = runtime / LOOK_FILE, 0, -math.inf
        self._models: set[str] = set()
        self._counted = _read(self._told)
        self._closing = threading.Event()
        self._tell()
        self._thread = threading.Thread(target=self._loop, name="watch-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._closing.wait(EVERY_S):
            try:
                self._tell()
            except (OSError, ValueError, KeyError) as error:
                logger.warning("what the watcher tells is not read: %s", error)

    def _tell(self) -> None:
        status, told = _read(self._watch), self._counted
        down, heals, restarts = status.get("down", {}), status.get("heals", {}), status.get("restarts", 0)
        for model in {*seen_models(self._runtime), *down}:
            self._down.set(float(model in down), model=model)
            more = max(0, heals.get(model, 0) - told.get("heals", {}).get(model, 0))
            if more or model not in self._models:
                self._heals.add(more, model=model)
            self._models.add(model)
        self._restarts.add(max(0, restarts - told.get("restarts", 0)))
        self._watched.add(self._watched_s())
        self._counted = {"heals": heals, "restarts": restarts}
        if self._counted != told:
            replace_text(self._told, json.dumps(self._counted))

    def _watched_s(self) -> float:
        """Seconds from the look before to the last one, once it is seen."""
        before, self._looked_at = self._looked_at, _time_of(self._looks)
        if self._looked_at == before:
            return 0.0
        passed_s, self._seen_at = time.monotonic() - self._seen_at, time.monotonic()
        return passed_s if passed_s < LOOKS_WITHIN_S else 0.0


def _time_of(path: Path) -> int:
    """When a file was written or touched; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # a full disk leaves files without an end
        return {}
