"""Metrics of the models, beside the server's own on its Prometheus endpoint.

A family belongs to the server: models and instances, each a process, that name the same family and labels count on the
same value. Values outlive their models.

What happens is kept here, and a thread tells the server at most every `TOLD_EVERY_S`: of counters, their growth. To be
told, the server takes a lock that it shares with the process; if that is killed then, the server ends (Triton 2.51).

What the server refuses can crash it (for a known family with another kind or a bad label), and so do two threads of one
process that use metrics at once. So operations take turns, what it would refuse is a ValueError here already, and a
name's ending says its kind.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

logger = logging.getLogger(__name__)

TOLD_EVERY_S = 0.25

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Buckets for times, upper bounds in seconds."""

NAME, LABEL = re.compile(r"[a-z][a-z0-9_]*"), re.compile(r"[a-z][a-z0-9_]*")
LORA_REFUSALS = ("swiftdiffusion_lora_refusals_total", "LoRAs not given to requests, by reason")
"""Counted in two models: `preprocess` refuses names, `lora_store` files."""

TRANSFERRED = (
    "swiftdiffusion_transferred_bytes_total",
    "Bytes of the tensors that a denoising step sends to other models and has from them",
)
"""Counted by shards, for ControlNets and for other shards."""

BUSY = ("swiftdiffusion_busy_seconds_total", "Time in which an instance of a model had something to compute")
"""Counted by shards, ControlNets, text encoders and VAE decoders."""

COUNTER_ENDINGS, HISTOGRAM_ENDINGS = ("_total",), ("_seconds", "_steps", "_size", "_ratio")

_Labels = tuple[tuple[str, str], ...]
_News = TypeVar("_News")


class _Metric(ABC, Generic[_News]):
    """What happened to each combination of labels since the server was told."""

    def __init__(self, name: str, is_of_kind: bool) -> None:
        if not is_of_kind:
            raise ValueError(f"the ending of the metric {name} is that of another kind")
        self._name = name
        self._mutex = threading.Lock()
        self._news: dict[_Labels, _News] = {}
        _teller.add(self)

    def tell(self) -> None:
        """Tells the server, if there is news."""
        with self._mutex:
            news, self._news = self._news, {}
        for labels, value in news.items():
            self._tell(labels, value)

    @abstractmethod
    def _tell(self, labels: _Labels, news: _News) -> None:
        """Tells the server of one combination."""

    def _note(self, labels: Mapping[str, str], add: Callable[[_News | None], _News]) -> None:
        if not all(LABEL.fullmatch(label) for label in labels):
            raise ValueError(f"labels of {self._name} are {sorted(labels)}; allowed: {LABEL.pattern}")
        key = tuple(sorted(labels.items()))
        with self._mutex:
            self._news[key] = add(self._news.get(key))
        _teller.wake()


class Counter(_Metric[float]):
    """A sum that only grows, one for each combination of labels."""

    def __init__(self, name: str, description: str) -> None:
        """Opens the family.

        Args:
            name: `swiftdiffusion_…_total`.
            description: One line.
        """
        super().__init__(name, name.endswith(COUNTER_ENDINGS))
        self._family = _Family(name, description, "COUNTER")

    def add(self, amount: float = 1.0, **labels: str) -> None:
        """Adds to the counter of these labels, which must not shrink."""
        if not 0 <= amount < math.inf:
            raise ValueError(f"counters grow by finite amounts, not by {amount}")
        self._note(labels, lambda before: (before or 0.0) + amount)

    def _tell(self, labels: _Labels, news: float) -> None:
        self._family.of(labels).increment(news)


class BusyTime:
    """How long one instance of a model computes."""

    def __init__(self, model: str, instance: str) -> None:
        """No time yet."""
        self._labels, self._seconds = {"model": model, "model_instance": instance}, Counter(*BUSY)
        self.add(0.0)

    def add(self, seconds: float) -> None:
        """It did for so long."""
        self._seconds.add(seconds, **self._labels)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """While it does."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - started)


class Gauge(_Metric[float]):
    """A value that goes up and down, one for each combination of labels."""

    def __init__(self, name: str, description: str) -> None:
        """Opens the family.

        Args:
            name: `swiftdiffusion_…` with its unit, unlike those of counters and histograms.
            description: One line.
        """
        super().__init__(name, not name.endswith((*COUNTER_ENDINGS, *HISTOGRAM_ENDINGS)))
        self._family = _Family(name, description, "GAUGE")

    def set(self, value: float, **labels: str) -> None:
        """Sets the gauge of these labels."""
        self._note(labels, lambda _: value)

    def _tell(self, labels: _Labels, news: float) -> None:
        self._family.of(labels).set(news)


class Histogram(_Metric[list[float]]):
    """How values are distributed, for each combination of labels."""

    def __init__(self, name: str, description: str, buckets: Sequence[float] = SECONDS) -> None:
        """Opens the family; needs Triton 2.51 or newer.

        Args:
            name: `swiftdiffusion_…_seconds`, `…_steps`, `…_size` or `…_ratio`.
            description: One line.
            buckets: Upper bounds, ascending.
        """
        if not buckets or any(low >= high for low, high in pairwise(buckets)):
            raise ValueError(f"the buckets of {name} do not ascend: {buckets}")
        super().__init__(name, name.endswith(HISTOGRAM_ENDINGS))
        self._family = _Family(name, description, "HISTOGRAM", buckets=list(buckets))

    def observe(self, value: float, **labels: str) -> None:
        """Counts a value, zero or more, for these labels."""
        if not 0 <= value < math.inf:
            raise ValueError(f"histograms count finite values from 0 on, not {value}")
        self._note(labels, lambda before: [*(before or ()), value])

    def _tell(self, labels: _Labels, news: list[float]) -> None:
        metric = self._family.of(labels)
        for value in news:
            metric.observe(value)


class _Family:
    """A family of the server's registry."""

    def __init__(self, name: str, description: str, kind: str, **options: Any) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"the metric {name!r} is not named {NAME.pattern}")
        self._metrics: dict[_Labels, Any] = {}
        self._options = options
        self._family: Any = None
        families = pb_utils.MetricFamily

        def open_family() -> None:
            self._family = families(name=name, description=description, kind=getattr(families, kind))

        _teller.take_turn(open_family)

    def of(self, labels: _Labels) -> Any:
        if labels not in self._metrics:
            self._metrics[labels] = self._family.Metric(labels=dict(labels), **self._options)
        return self._metrics[labels]


class _Teller:
    """Tells the server, one operation at a time; after one that failed, this process makes no more."""

    def __init__(self) -> None:
        self._metrics: list[_Metric[Any]] = []
        self._news, self._closing = threading.Event(), threading.Event()
        self._turn = threading.Lock()
        self._failed = False
        self._thread = threading.Thread(target=self._loop, name="metrics", daemon=True)

    def add(self, metric: _Metric[Any]) -> None:
        self._metrics.append(metric)

    def wake(self) -> None:
        self._news.set()
        if self._thread.ident is None:
            with self._turn:
                if self._thread.ident is None:
                    self._thread.start()

    def take_turn(self, operation: Callable[[], None]) -> None:
        with self._turn:
            if self._failed:
                return
            try:
                operation()
            except Exception as error:  # noqa: BLE001  a model goes on without metrics
                self._failed = True
                logger.warning("this model has no metrics from now on: %s: %s", type(error).__name__, error)

    def close(self) -> None:
        self._closing.set()
        self.wake()
        self._thread.join()

    def _tell(self) -> None:
        for metric in list(self._metrics):
            self.take_turn(metric.tell)

    def _loop(self) -> None:
        while not self._closing.is_set():
            self._news.wait()
            self._closing.wait(TOLD_EVERY_S)
            self._news.clear()
            self._tell()
        self._tell()


_teller = _Teller()


def close() -> None:
    """Tells the server the rest, and nothing from then on: for a model's `finalize`."""
    _teller.close()
