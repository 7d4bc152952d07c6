"""`swiftdiffusion perf`: throughput and latency of a running server."""

import json
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..async_client import DEFAULT_URL
from ..client import Client
from ..errors import SwiftDiffusionError
from ..request import GenerationRequest
from .load import Latency, Load, measure, read_requests
from .statistics import ModelWork, read_statistics
from .tool import PerfAnalyzer, PerfAnalyzerError, find_perf_analyzer

DEFAULT_URLS = (DEFAULT_URL, "http://127.0.0.1:8000")
PLAIN_REQUESTS = Path(__file__).with_name("plain.json")


@dataclass(frozen=True)
class Level:
    """What was measured at one concurrency."""

    concurrency: int
    latency: Latency
    models: tuple[ModelWork, ...]


def perf(
    url: Annotated[list[str] | None, typer.Option(help=f"Repeatable. Default: {' and '.join(DEFAULT_URLS)}.")] = None,
    concurrency: Annotated[str, typer.Option(help="Requests in flight, such as 1,2,4,8.")] = "1,2,4,8",
    requests: Annotated[int, typer.Option(min=1, help="Requests in each of three windows per concurrency.")] = 10,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; default: the input data's.")] = None,
    input_data: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Requests, in perf_analyzer's format.")
    ] = PLAIN_REQUESTS,
    model: Annotated[str | None, typer.Option(help="Entry model; default: sdxl or sd15, as the server has.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the numbers there, as JSON.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where perf_analyzer is kept. Default: the user's cache.")] = None,
) -> None:
    """Measure a running server with perf_analyzer, which is fetched on first use."""
    console = Console()
    levels = _parse_levels(concurrency)
    entries = read_requests(input_data, {"STEPS": steps})
    runs = []
    try:
        with console.status("getting perf_analyzer"):
            tool = find_perf_analyzer(cache)
        for address in url or DEFAULT_URLS:
            with Client(address, model) as client:
                load = Load(address, client.model(), entries, requests)
                version = client.health().version
                client.generate(GenerationRequest("warm up", steps=2))
            measured = _measure(tool, load, levels, console)
            _show(console, load, measured)
            about = {"url": address, "api": load.api, "model": load.model, "server_version": version}
            runs.append({**about, "levels": [asdict(level) for level in measured]})
    except (PerfAnalyzerError, SwiftDiffusionError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if out is not None:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        summary = {"machine": machine, "requests": entries, "requests_per_window": requests, "runs": runs}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {out}", highlight=False)


def _measure(tool: PerfAnalyzer, load: Load, levels: Sequence[int], console: Console) -> list[Level]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    measured = []
    with (
        tempfile.TemporaryDirectory() as directory,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task(load.url, total=len(levels))
        for level in levels:
            progress.update(task, description=f"{load.url}, {level} at a time")
            before = read_statistics(load.url)
            latency = measure(tool, load, level, Path(directory))
            measured.append(Level(level, latency, tuple(read_statistics(load.url).work_since(before))))
            progress.advance(task)
    return measured


def _show(console: Console, load: Load, measured: Sequence[Level]) -> None:
    table = Table(title=f"{load.model} at {load.url}, {load.api}", title_justify="left")
    for heading in ("at a time", "pictures/s", "mean ms", "p50 ms", "p90 ms", "p95 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    for level in measured:
        latency = level.latency
        numbers = [latency.mean_ms, *latency.percentiles_ms.values()]
        table.add_row(str(level.concurrency), f"{latency.throughput:.2f}", *(f"{number:.0f}" for number in numbers))
    console.print(table)
    models = Table(title="the models' part in it, means per call", title_justify="left")
    models.add_column("model")
    for heading in ("at a time", "calls", "batch", "queue ms", "compute ms", "transfer ms"):
        models.add_column(heading, justify="right")
    for name in sorted({work.model for level in measured for work in level.models}):
        for level in measured:
            for work in (work for work in level.models if work.model == name):
                times = (work.queue_ms, work.compute_ms, work.transfer_ms)
                numbers_shown = [str(work.calls), f"{work.mean_batch:.2f}", *(f"{time:.2f}" for time in times)]
                models.add_row(name, str(level.concurrency), *numbers_shown)
        models.add_section()
    console.print(models)


def _parse_levels(text: str) -> list[int]:
    levels = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(levels) < 1:
        raise typer.BadParameter(f"--concurrency is {text!r}; wanted: numbers from 1, such as 1,2,4,8")
    return levels
