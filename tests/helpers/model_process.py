"""What the server's Python backend gives the process of a model, as far as an engine asks for it: metrics and a log.

To be imported before the modules that import `triton_python_backend_utils`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

told: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
"""Family → its first label, or "" → what its metric was told."""


@contextmanager
def own_metrics() -> Iterator[None]:
    """Metrics that are made within are nobody else's; at the end all is told."""
    from swiftdiffusion.python_backends.backend import metrics

    with mock.patch.object(metrics, "_teller", metrics._Teller()):
        told.clear()
        yield
        metrics.close()


logged: list[str] = []
"""Errors."""


class Metric:
    """One of a family."""

    def __init__(self, values: list[float]) -> None:
        self.increment = self.observe = self.set = values.append


class MetricFamily:
    """A family of metrics."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

    def __init__(self, name: str, description: str, kind: str) -> None:
        self._values = told[name]

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:  # noqa: N802
        """The one of these labels."""
        return Metric(self._values[next(iter(labels.values()), "")])


class Logger:
    """The server's log."""

    log_error = staticmethod(logged.append)


class TritonModelException(Exception):  # noqa: N818  the server's name
    """What the server refuses."""


if "triton_python_backend_utils" not in sys.modules:
    module = ModuleType("triton_python_backend_utils")
    for each in (MetricFamily, Logger, TritonModelException):
        setattr(module, each.__name__, each)
    sys.modules[module.__name__] = module
