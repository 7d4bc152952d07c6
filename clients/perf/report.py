"""What was measured, as tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from .load import Latency, Load
from .lora_metrics import LoraWork, Timed
from .statistics import ModelWork


@dataclass(frozen=True)
class Level:
    """What was measured at one concurrency; `loras` is None where metrics are not to be had or tell of none."""

    concurrency: int
    latency: Latency
    models: tuple[ModelWork, ...]
    loras: LoraWork | None = None


def show(console: Console, load: Load, measured: Sequence[Level]) -> None:
    """Prints latencies, the models' part in them, and what happened to LoRAs."""
    console.print(_latencies(load, measured))
    if any(level.loras is not None for level in measured):
        console.print(_loras(measured))
    console.print(_models(measured))


def _latencies(load: Load, measured: Sequence[Level]) -> Table:
    headings = ("at a time", "pictures/s", "mean ms", "p50 ms", "p90 ms", "p95 ms", "p99 ms")
    table = _table(f"{load.model} at {load.url}, {load.api}", headings)
    for level in measured:
        latency = level.latency
        numbers = [latency.mean_ms, *latency.percentiles_ms.values()]
        table.add_row(str(level.concurrency), f"{latency.throughput:.2f}", *(f"{number:.0f}" for number in numbers))
    return table


def _loras(measured: Sequence[Level]) -> Table:
    sources = sorted({source for level in measured if level.loras for source in level.loras.loads})
    headings = ("at a time", *(f"from {source}" for source in sources), "refused", "patches", "waits", "steps without")
    table = _table("LoRAs: how many × mean ms", headings)
    for level in measured:
        work = level.loras
        if work is not None:
            loads = (_timed(work.loads.get(source)) for source in sources)
            rest = (str(work.refused), _timed(work.patches), _timed(work.waits), f"{work.delay_steps:.1f}")
            table.add_row(str(level.concurrency), *loads, *rest)
    return table


def _models(measured: Sequence[Level]) -> Table:
    headings = ("at a time", "calls", "batch", "queue ms", "compute ms", "transfer ms")
    table = _table("the models' part in it, means per call", headings, first="model")
    for name in sorted({work.model for level in measured for work in level.models}):
        for level in measured:
            for work in (work for work in level.models if work.model == name):
                times = (work.queue_ms, work.compute_ms, work.transfer_ms)
                numbers_shown = [str(work.calls), f"{work.mean_batch:.2f}", *(f"{time:.2f}" for time in times)]
                table.add_row(name, str(level.concurrency), *numbers_shown)
        table.add_section()
    return table


def _table(title: str, headings: Sequence[str], first: str | None = None) -> Table:
    table = Table(title=title, title_justify="left")
    if first is not None:
        table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _timed(timed: Timed | None) -> str:
    return "0" if timed is None or timed.count == 0 else f"{timed.count} × {timed.mean_ms:.1f}"
