"""Metrics of the models, beside the server's own on its Prometheus endpoint.

A family belongs to the server: models and instances, each a process, that name the same family and labels count on the
same value. Families of a name must be of one kind, the buckets of labels are those that were named first, and values
outlive their models.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Buckets for times, upper bounds in seconds."""

_mutex = threading.Lock()
"""One use of metrics at a time: two threads of a process at once crash the whole server (Triton 2.51)."""


class Counter:
    """A sum that only grows, one for each combination of labels."""

    def __init__(self, name: str, description: str) -> None:
        """Opens the family.

        Args:
            name: As Prometheus wants it: `swiftdiffusion_…_total`.
            description: One line.
        """
        self._family = _Family(name, description, "COUNTER")

    def add(self, amount: float = 1.0, **labels: str) -> None:
        """Adds to the counter of these labels."""
        self._family.use("increment", amount, labels)


class Gauge:
    """A value that goes up and down, one for each combination of labels."""

    def __init__(self, name: str, description: str) -> None:
        """Opens the family.

        Args:
            name: As Prometheus wants it: `swiftdiffusion_…` with its unit.
            description: One line.
        """
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
            name: As Prometheus wants it: `swiftdiffusion_…` with its unit.
            description: One line.
            buckets: Upper bounds, ascending.
        """
        self._buckets = tuple(buckets)
        self._parts: tuple[Counter, Counter, Counter] | None = None
        if hasattr(pb_utils.MetricFamily, "HISTOGRAM"):
            self._family = _Family(name, description, "HISTOGRAM", {"buckets": list(self._buckets)})
        else:
            bucket, total, count = (Counter(f"{name}_{part}", description) for part in ("bucket", "sum", "count"))
            self._parts = bucket, total, count

    def observe(self, value: float, **labels: str) -> None:
        """Counts a value for these labels."""
        if self._parts is None:
            self._family.use("observe", value, labels)
            return
        bucket, total, count = self._parts
        first = bisect_left(self._buckets, value)
        for index, bound in enumerate((*self._buckets, float("inf"))):
            bucket.add(float(index >= first), le=f"{bound:g}".replace("inf", "+Inf"), **labels)
        total.add(value, **labels)
        count.add(1.0, **labels)


class _Family:
    """A family of the server's registry; does nothing on a server without metrics."""

    def __init__(self, name: str, description: str, kind: str, options: dict[str, Any] | None = None) -> None:
        self._name, self._options = name, options or {}
        self._metrics: dict[tuple[tuple[str, str], ...], Any] = {}
        self._family: Any = None
        try:
            with _mutex:
                self._family = pb_utils.MetricFamily(
                    name=name, description=description, kind=getattr(pb_utils.MetricFamily, kind)
                )
        except pb_utils.TritonModelException as error:
            logger.warning("the metric %s is left out: %s", name, error)

    def use(self, operation: str, value: float, labels: dict[str, str]) -> None:
        if self._family is None:
            return
        key = tuple(sorted(labels.items()))
        try:
            with _mutex:
                metric = self._metrics.get(key)
                if metric is None:
                    metric = self._metrics[key] = self._family.Metric(labels=labels, **self._options)
                getattr(metric, operation)(value)
        except pb_utils.TritonModelException as error:
            self._family = None
            logger.warning("the metric %s is left out from now on: %s", self._name, error)
