"""Metrics of the models, beside the server's own on its Prometheus endpoint.

A family belongs to the server: models and instances, each a process, that name the same family and labels count on the
same value. Values outlive their models.

What happens is added up here, and a thread tells the server every `TOLD_EVERY_S`. To be told, the server shares a lock
with the process; if that is killed meanwhile, the server ends (Triton 2.51). So it is told rarely, and of sums:
histograms are counters too, which Prometheus reads alike.

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
from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

TOLD_EVERY_S = 0.25
"""While there is news."""

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

COUNTER_ENDINGS, HISTOGRAM_ENDINGS = ("_total",), ("_seconds", "_steps", "_size", "_ratio")

_Labels = tuple[tuple[str, str], ...]


class Counter:
    """A sum that only grows, one for each combination of labels."""

    def __init__(self, name: str, description: str) -> None:
        """Opens the family.

        Args:
            name: `swiftdiffusion_…_total`.
            description: One line.
        """
        _check(name, name.endswith(COUNTER_ENDINGS))
        self._family = _Family(name, description, "COUNTER")

    def add(self, amount: float = 1.0, **labels: str) -> None:
        """Adds to the counter of these labels, which must not shrink."""
        if not 0 <= amount < math.inf:
            raise ValueError(f"counters grow by finite amounts, not by {amount}")
        self._family.note(amount, labels)


class Gauge:
    """A value that goes up and down, one for each combination of labels."""

    def __init__(self, name: str, description: str) -> None:
        """Opens the family.

        Args:
            name: `swiftdiffusion_…` with its unit, unlike those of counters and histograms.
            description: One line.
        """
        _check(name, not name.endswith((*COUNTER_ENDINGS, *HISTOGRAM_ENDINGS)))
        self._family = _Family(name, description, "GAUGE")

    def set(self, value: float, **labels: str) -> None:
        """Sets the gauge of these labels."""
        self._family.note(value, labels)


class Histogram:
    """How values are distributed, for each combination of labels."""

    def __init__(self, name: str, description: str, buckets: Sequence[float] = SECONDS) -> None:
        """Opens the families of its buckets, sum and count.

        Args:
            name: `swiftdiffusion_…_seconds`, `…_steps`, `…_size` or `…_ratio`.
            description: One line.
            buckets: Upper bounds, ascending.
        """
        _check(name, name.endswith(HISTOGRAM_ENDINGS))
        if not buckets or any(low >= high for low, high in pairwise(buckets)):
            raise ValueError(f"the buckets of {name} do not ascend: {buckets}")
        self._bounds = [*(f"{bound:g}" for bound in buckets), "+Inf"]
        self._buckets = tuple(buckets)
        self._bucket, self._sum, self._count = (
            _Family(f"{name}_{part}", description, "COUNTER") for part in ("bucket", "sum", "count")
        )

    def observe(self, value: float, **labels: str) -> None:
        """Counts a value, zero or more, for these labels."""
        if not 0 <= value < math.inf:
            raise ValueError(f"histograms count finite values from 0 on, not {value}")
        first = bisect_left(self._buckets, value)
        for index, bound in enumerate(self._bounds):
            self._bucket.note(float(index >= first), {**labels, "le": bound})
        self._sum.note(value, labels)
        self._count.note(1.0, labels)


def _check(name: str, is_of_kind: bool) -> None:
    if not is_of_kind:
        raise ValueError(f"the ending of the metric {name} is that of another kind")


class _Family:
    """A family of the server's registry; does nothing on a server without metrics."""

    def __init__(self, name: str, description: str, kind: str) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"the metric {name!r} is not named {NAME.pattern}")
        self._name, self._description, self._kind = name, description, kind
        self._mutex = threading.Lock()
        self._news: dict[_Labels, float] = {}
        self._metrics: dict[_Labels, Any] = {}
        self._family: Any = None
        _teller.add(self)

    def note(self, value: float, labels: dict[str, str]) -> None:
        """Adds to a counter, sets a gauge."""
        if not all(LABEL.fullmatch(label) for label in labels):
            raise ValueError(f"labels of {self._name} are {sorted(labels)}; allowed: {LABEL.pattern}")
        key = tuple(sorted(labels.items()))
        with self._mutex:
            before = self._news.get(key, 0.0) if self._kind == "COUNTER" else 0.0
            self._news[key] = before + value
        _teller.news.set()

    def open(self) -> None:
        families = pb_utils.MetricFamily
        self._family = families(name=self._name, description=self._description, kind=getattr(families, self._kind))

    def tell(self) -> None:
        with self._mutex:
            news, self._news = self._news, {}
        for labels, value in news.items():
            metric = self._metrics.get(labels)
            if metric is None:
                metric = self._metrics[labels] = self._family.Metric(labels=dict(labels))
            if self._kind == "GAUGE":
                metric.set(value)
            elif value:
                metric.increment(value)


class _Teller:
    """Who talks to the server, one operation at a time; after one that failed, this process makes no more."""

    def __init__(self) -> None:
        self.news = threading.Event()
        self._families: list[_Family] = []
        self._turn = threading.Lock()
        self._failed = False

    def add(self, family: _Family) -> None:
        if not self._families:
            threading.Thread(target=self._tell, name="metrics", daemon=True).start()
        self._try(family.open)
        self._families.append(family)

    def _tell(self) -> None:
        while not self._failed:
            self.news.wait()
            time.sleep(TOLD_EVERY_S)
            self.news.clear()
            for family in list(self._families):
                self._try(family.tell)

    def _try(self, operation: Callable[[], None]) -> None:
        with self._turn:
            if self._failed:
                return
            try:
                operation()
            except pb_utils.TritonModelException as error:
                self._failed = True
                logger.warning("this model has no metrics from now on: %s", error)


_teller = _Teller()
