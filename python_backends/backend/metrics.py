"""Metrics of the models, beside the server's own on its Prometheus endpoint.

A family belongs to the server: models and instances, each a process, that name the same family and labels count on the
same value. The buckets of labels are those that were named first, and values outlive their models.

What the server refuses can crash it (Triton 2.51, for a known family with another kind or a bad label), and so do two
threads of one process that use metrics at once. So operations take turns, what it would refuse is a ValueError here
already, and a name's ending says its kind.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

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

_mutex, _failed = threading.Lock(), threading.Event()


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
        self._family.use("increment", amount, labels)


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
        self._family.use("set", value, labels)


class Histogram:
    """How values are distributed, for each combination of labels.

    On servers without histograms (before 2.51) it is made of counters, which Prometheus reads alike.
    """

    def __init__(self, name: str, description: str, buckets: Sequence[float] = SECONDS) -> None:
        """Opens the family.

        Args:
            name: `swiftdiffusion_…_seconds`, `…_steps`, `…_size` or `…_ratio`.
            description: One line.
            buckets: Upper bounds, ascending.
        """
        _check(name, name.endswith(HISTOGRAM_ENDINGS))
        self._buckets = tuple(buckets)
        if not self._buckets or any(low >= high for low, high in pairwise(self._buckets)):
            raise ValueError(f"the buckets of {name} do not ascend: {self._buckets}")
        self._parts: tuple[_Family, _Family, _Family] | None = None
        if hasattr(pb_utils.MetricFamily, "HISTOGRAM"):
            self._family = _Family(name, description, "HISTOGRAM", {"buckets": list(self._buckets)})
        else:
            bucket, total, count = (
                _Family(f"{name}_{part}", description, "COUNTER") for part in ("bucket", "sum", "count")
            )
            self._parts = bucket, total, count

    def observe(self, value: float, **labels: str) -> None:
        """Counts a value, zero or more, for these labels."""
        if not 0 <= value < math.inf:
            raise ValueError(f"histograms count finite values from 0 on, not {value}")
        if self._parts is None:
            self._family.use("observe", value, labels)
            return
        bucket, total, count = self._parts
        first = bisect_left(self._buckets, value)
        for index, bound in enumerate((*self._buckets, math.inf)):
            le = "+Inf" if bound == math.inf else f"{bound:g}"
            bucket.use("increment", float(index >= first), {**labels, "le": le})
        total.use("increment", value, labels)
        count.use("increment", 1.0, labels)


def _check(name: str, is_of_kind: bool) -> None:
    if not is_of_kind:
        raise ValueError(f"the ending of the metric {name} is that of another kind")


class _Family:
    """A family of the server's registry; does nothing on a server without metrics."""

    def __init__(self, name: str, description: str, kind: str, options: dict[str, Any] | None = None) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"the metric {name!r} is not named {NAME.pattern}")
        self._name, self._description, self._kind, self._options = name, description, kind, options or {}
        self._metrics: dict[tuple[tuple[str, str], ...], Any] = {}
        self._family: Any = None
        _try(name, self._open)

    def use(self, operation: str, value: float, labels: dict[str, str]) -> None:
        if not all(LABEL.fullmatch(label) for label in labels):
            raise ValueError(f"labels of {self._name} are {sorted(labels)}; allowed: {LABEL.pattern}")
        _try(self._name, lambda: self._use(operation, value, labels))

    def _open(self) -> None:
        families = pb_utils.MetricFamily
        self._family = families(name=self._name, description=self._description, kind=getattr(families, self._kind))

    def _use(self, operation: str, value: float, labels: dict[str, str]) -> None:
        key = tuple(sorted(labels.items()))
        metric = self._metrics.get(key)
        if metric is None:
            metric = self._metrics[key] = self._family.Metric(labels=labels, **self._options)
        getattr(metric, operation)(value)


def _try(name: str, operation: Callable[[], None]) -> None:
    """One operation on metrics; after one that failed, this process makes no more."""
    with _mutex:
        if _failed.is_set():
            return
        try:
            operation()
        except pb_utils.TritonModelException as error:
            _failed.set()
            logger.warning("this model has no metrics from now on: %s: %s", name, error)
