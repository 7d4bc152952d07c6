"""What a replay measured: latencies, goodput, SLO attainment, refusals, where LoRAs were."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from .outcomes import Outcome, Status

_PERCENTILES = (50, 95, 99)
_NUMBER = re.compile(r"\b\d+(?:\.\d+)?\b")


@dataclass(frozen=True)
class Report:
    """A replay in numbers; what there were no requests for is None.

    Attributes:
        requests: how many were sent.
        seconds: from the start to the last answer.
        offered: requests per second while they arrived.
        counts: requests by status.
        sentences: why requests got no picture, and how many for each reason: the first of the sentences that differ in
            numbers alone stands for all of them.
        latency_ms: of pictures, from the arrival in the trace: `p50`, `p95`, `p99`, `mean`.
        throughput: pictures per second.
        slo_ms: the latency that a picture may have.
        goodput: pictures within their SLO per second.
        attainment: share of all requests that got a picture within the SLO.
        attainment_of_admitted: the same of those that were not refused.
        refusal_ms: latency of refusals.
        lora_sources: shares of the LoRAs of pictures by where they were: `gpu`, `host`, `disk`, `remote`.
        late_loras: share of them that went on after the first step.
        mean_patched_at_step: of all of them.
        most_in_flight: requests at the same time.
        client_late_ms: how much later than in the trace the client sent; latencies include it.
    """

    requests: int
    seconds: float
    offered: float
    counts: Mapping[str, int]
    sentences: Mapping[str, int]
    latency_ms: Mapping[str, float] | None
    throughput: float
    slo_ms: float
    goodput: float
    attainment: float
    attainment_of_admitted: float | None
    refusal_ms: Mapping[str, float] | None
    lora_sources: Mapping[str, float]
    late_loras: float | None
    mean_patched_at_step: float | None
    most_in_flight: int
    client_late_ms: Mapping[str, float] | None

    def as_json(self) -> dict[str, Any]:
        """For a result file, to four decimals."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def summarise(outcomes: Sequence[Outcome], slo_seconds: float) -> Report:
    """The report of a replay.

    Args:
        outcomes: of all its requests.
        slo_seconds: the latency that a picture may have.

    Raises:
        ValueError: there are no outcomes.
    """
    if not outcomes:
        raise ValueError("there are no requests to report on")
    by_status = {status: [each for each in outcomes if each.status is status] for status in Status}
    pictures, refused = by_status[Status.OK], by_status[Status.REFUSED]
    within = sum(each.seconds <= slo_seconds for each in pictures)
    seconds = max(each.end for each in outcomes)
    arriving = max(each.at for each in outcomes)
    admitted = len(outcomes) - len(refused)
    loras = [lora for each in pictures for lora in each.loras]
    steps = [lora.patched_at_step for lora in loras if lora.patched_at_step is not None]
    sources = Counter(lora.source for lora in loras if lora.source is not None)
    return Report(
        requests=len(outcomes),
        seconds=seconds,
        offered=len(outcomes) / arriving if arriving else 0.0,
        counts={status.value: len(each) for status, each in by_status.items()},
        sentences=_kinds(each.sentence for each in outcomes if each.status is not Status.OK),
        latency_ms=_milliseconds([each.seconds for each in pictures]),
        throughput=len(pictures) / seconds,
        slo_ms=1000 * slo_seconds,
        goodput=within / seconds,
        attainment=within / len(outcomes),
        attainment_of_admitted=within / admitted if admitted else None,
        refusal_ms=_milliseconds([each.seconds for each in refused]),
        lora_sources={source: count / sources.total() for source, count in sorted(sources.items())},
        late_loras=sum(step > 0 for step in steps) / len(steps) if steps else None,
        mean_patched_at_step=sum(steps) / len(steps) if steps else None,
        most_in_flight=_most_in_flight(outcomes),
        client_late_ms=_milliseconds([each.late for each in outcomes]),
    )


def show(console: Console, report: Report, title: str) -> None:
    """Prints a report as a table."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    ended = ", ".join(f"{count} {status}" for status, count in report.counts.items() if count)
    table.add_row("requests", f"{report.requests} in {report.seconds:.1f} s: {ended}")
    table.add_row("offered, answered", f"{report.offered:.2f}, {report.throughput:.2f} per second")
    for name, latencies in (("latency", report.latency_ms), ("refusals' latency", report.refusal_ms)):
        if latencies is not None:
            told = (f"{key} {value:.0f}" for key, value in latencies.items())
            table.add_row(name, ", ".join(told) + " ms")
    table.add_row(f"goodput, SLO {report.slo_ms:.0f} ms", f"{report.goodput:.2f} per second")
    table.add_row("SLO attainment", f"{report.attainment:.1%}")
    if report.attainment_of_admitted is not None and report.refusal_ms is not None:
        table.add_row("… of those admitted", f"{report.attainment_of_admitted:.1%}")
    if report.lora_sources:
        told = (f"{source} {share:.1%}" for source, share in report.lora_sources.items())
        table.add_row("LoRAs came from", ", ".join(told))
    if report.late_loras is not None:
        table.add_row("LoRAs on after the first step", f"{report.late_loras:.1%}")
    table.add_row("most in flight", str(report.most_in_flight))
    if report.client_late_ms is not None:
        table.add_row("sent late by the client", f"p99 {report.client_late_ms['p99']:.1f} ms")
    console.print(table)
    for sentence, count in report.sentences.items():
        console.print(f"{count} × {sentence}", markup=False, highlight=False, soft_wrap=True)


def _kinds(sentences: Iterable[str]) -> dict[str, int]:
    examples: dict[str, str] = {}
    counts = Counter(examples.setdefault(_NUMBER.sub("…", sentence), sentence) for sentence in sentences)
    return dict(counts.most_common())


def _milliseconds(seconds: Sequence[float]) -> Mapping[str, float] | None:
    """Percentiles that are observed values, and the mean."""
    if not seconds:
        return None
    values = 1000 * np.asarray(seconds, dtype=np.float64)
    ranked = np.percentile(values, _PERCENTILES, method="inverted_cdf")
    named = {f"p{percent}": float(value) for percent, value in zip(_PERCENTILES, ranked, strict=True)}
    return {**named, "mean": float(values.mean())}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def _most_in_flight(outcomes: Sequence[Outcome]) -> int:
    changes = sorted([(each.at, 1) for each in outcomes] + [(each.end, -1) for each in outcomes])
    return int(np.cumsum([change for _, change in changes]).max())
