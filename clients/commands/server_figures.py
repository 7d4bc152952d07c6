"""What a server does now, from its metrics at two moments."""

import math
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_PREFIX = "swiftdiffusion_"
_TIMEOUT_SECONDS = 5.0
_OWED = ("in_time", "late", "shed", "failed")  # neither the client's mistake nor its wish

_Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class PipelineFigures:
    """One pipeline.

    Attributes:
        pipeline: the public model.
        waiting: accepted requests that have not begun to denoise.
        running: requests that denoise.
        requests: that ended, per second.
        refused: of these, before anything was computed.
        in_time: share of those that were owed a picture; None if there were none.
        p50: seconds to a picture; None if there was none. p95 likewise.
        step_ms: rows of a step, at most → milliseconds of such a step.
        offered: seconds of work that were asked for, per second.
    """

    pipeline: str
    waiting: float
    running: float
    requests: float
    refused: float
    in_time: float | None
    p50: float | None
    p95: float | None
    step_ms: Mapping[int, float]
    offered: float


@dataclass(frozen=True)
class ModelFigures:
    """One model that computes: the share of the time in which its instances did, if it is down, how often it healed."""

    model: str
    busy: float
    down: bool
    heals: float


@dataclass(frozen=True)
class ServerFigures:
    """What `swiftdiffusion top` shows; `restarts` are those of the server itself."""

    pipelines: list[PipelineFigures]
    models: list[ModelFigures]
    restarts: float


class Snapshot:
    """The models' metrics at one moment."""

    def __init__(self, at: float, samples: Mapping[tuple[str, _Labels], float]) -> None:
        """Takes samples by name without prefix and labels; `at` in seconds of any clock."""
        self._at, self._samples = at, samples

    def figures_since(self, earlier: "Snapshot") -> ServerFigures:
        """What happened between an earlier moment and this one; counters that shrank began again at zero."""
        grown = Snapshot(self._at - earlier._at, {key: self._grown(key, earlier) for key in self._samples})
        models = {*self._values("busy_seconds_total", "model"), *self._values("model_down", "model")}
        return ServerFigures(
            [self._pipeline(name, grown) for name in self._values("requests_finished_total", "pipeline")],
            [
                ModelFigures(
                    model,
                    grown._busy(model),
                    self._sum("model_down", model=model) > 0,
                    self._sum("heals_total", model=model),
                )
                for model in sorted(models)
            ],
            self._sum("restarts_total"),
        )

    def _pipeline(self, pipeline: str, grown: "Snapshot") -> PipelineFigures:
        finished = {
            outcome: grown._sum("requests_finished_total", pipeline=pipeline, outcome=outcome) for outcome in _OWED
        }
        owed = sum(finished.values())
        step_ms = {}
        for rows in sorted(map(int, grown._values("step_seconds_count", "rows"))):
            own = {"pipeline": pipeline, "rows": str(rows)}
            steps = grown._sum("step_seconds_count", **own)
            if steps:
                step_ms[rows] = 1000 * grown._sum("step_seconds_sum", **own) / steps
        return PipelineFigures(
            pipeline,
            self._sum("requests_waiting", pipeline=pipeline),
            self._sum("requests_running", pipeline=pipeline),
            grown._per_second("requests_finished_total", pipeline=pipeline),
            grown._per_second("requests_refused_total", pipeline=pipeline),
            finished["in_time"] / owed if owed else None,
            grown._quantile(0.5, "request_seconds_bucket", pipeline=pipeline),
            grown._quantile(0.95, "request_seconds_bucket", pipeline=pipeline),
            step_ms,
            grown._per_second("offered_seconds_total", pipeline=pipeline),
        )

    def _grown(self, key: tuple[str, _Labels], earlier: "Snapshot") -> float:
        now, before = self._samples[key], earlier._samples.get(key, 0.0)
        return now - before if now >= before else now

    def _sum(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self._of(name, labels))

    def _per_second(self, name: str, **labels: str) -> float:
        return self._sum(name, **labels) / self._at if self._at > 0 else 0.0

    def _busy(self, model: str) -> float:
        instances = sum(1 for _ in self._of("busy_seconds_total", {"model": model}))
        return self._per_second("busy_seconds_total", model=model) / max(1, instances)

    def _values(self, name: str, label: str) -> list[str]:
        return sorted({dict(own)[label] for of, own in self._samples if of == name})

    def _quantile(self, quantile: float, name: str, **labels: str) -> float | None:
        counts: dict[float, float] = {}
        for own, count in self._of(name, labels):
            bound = float(own["le"])
            counts[bound] = counts.get(bound, 0.0) + count
        return quantile_of(quantile, sorted(counts.items()))

    def _of(self, name: str, labels: Mapping[str, str]) -> Iterable[tuple[dict[str, str], float]]:
        for (of, own), value in self._samples.items():
            if of == name and labels.items() <= own:
                yield dict(own), value


def quantile_of(quantile: float, cumulative: list[tuple[float, float]]) -> float | None:
    """A quantile of a histogram as Prometheus estimates it, linear within a bucket; None if nothing was counted.

    Args:
        quantile: 0 to 1.
        cumulative: upper bounds, ascending to infinity, and how many values are at most that.
    """
    total = cumulative[-1][1] if cumulative else 0.0
    if not total:
        return None
    low, below = 0.0, 0.0
    for bound, count in cumulative:
        if count >= quantile * total and count > below:
            part = (quantile * total - below) / (count - below)
            return low if math.isinf(bound) else low + part * (bound - low)
        low, below = bound, count
    return low


def read_snapshot(url: str, at: float) -> Snapshot:
    """A server's metrics.

    Raises:
        OSError: nobody answers there, or not with metrics.
    """
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
        text = answer.read().decode(errors="replace")
    try:
        return parse_snapshot(text, at)
    except ValueError as error:
        raise OSError(f"{url} answers with what are no metrics: {error}") from error


def parse_snapshot(text: str, at: float) -> Snapshot:
    """Metrics in Prometheus' text format; raises ValueError where it is none."""
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[tuple[str, _Labels], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(_PREFIX):
                samples[sample.name.removeprefix(_PREFIX), frozenset(sample.labels.items())] = sample.value
    return Snapshot(at, samples)
