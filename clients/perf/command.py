"""`swiftdiffusion perf`: throughput and latency of a running server."""

import json
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..client.async_client import DEFAULT_URL
from ..client.client import Client
from ..client.errors import SwiftDiffusionError
from ..client.request import GenerationRequest
from .load import INPUTS, Load, Requests, measure, read_requests
from .lora_metrics import LoraMetrics, metrics_url_of, read_lora_metrics
from .report import Level, show
from .statistics import read_statistics
from .tool import PerfAnalyzer, PerfAnalyzerError, find_perf_analyzer

DEFAULT_URLS = (DEFAULT_URL, "http://127.0.0.1:8000")


def perf(
    url: Annotated[list[str] | None, typer.Option(help=f"Repeatable. Default: {' and '.join(DEFAULT_URLS)}.")] = None,
    concurrency: Annotated[str, typer.Option(help="Requests in flight, such as 1,2,4,8.")] = "1,2,4,8",
    requests: Annotated[int, typer.Option(min=1, help="Requests in each of three windows per concurrency.")] = 10,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; default: the input data's.")] = None,
    lora_bound: Annotated[
        int | None, typer.Option(min=0, help="Steps that may run before LoRAs are loaded; 0 waits for them.")
    ] = None,
    input_data: Annotated[
        str,
        typer.Option(
            metavar="[plain|loras|FILE]",
            help="Requests: without LoRAs, with those of the demo family, or a file in perf_analyzer's format.",
        ),
    ] = "plain",
    metrics_url: Annotated[
        str | None, typer.Option(help="The server's metrics. Default: port 8002 of its host, if it answers there.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Entry model; default: sdxl or sd15, as the server has.")] = None,
    admin_key_file: Annotated[
        Path | None, typer.Option(help="Of a restricted server: holds the key.", exists=True, dir_okay=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the numbers there, as JSON.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where perf_analyzer is kept. Default: the user's cache.")] = None,
) -> None:
    """Measure a running server with perf_analyzer, which is fetched on first use."""
    console = Console()
    levels = _parse_levels(concurrency)
    entries = read_requests(_input_file(input_data), {"STEPS": steps, "LORA_BOUND": lora_bound})
    admin_key = None if admin_key_file is None else admin_key_file.read_text(encoding="utf-8").strip()
    coming, runs = entries, []
    try:
        with console.status("getting perf_analyzer"):
            tool = find_perf_analyzer(cache)
        for address in url or DEFAULT_URLS:
            with Client(address, model) as client:
                load = Load(address, client.model(), coming, requests, admin_key)
                version = client.version()
                client.generate(GenerationRequest("warm up", steps=2))
            measured = _measure(tool, load, levels, metrics_url, console)
            coming = _moved_on(coming, measured, load.model)
            show(console, load, measured)
            about = {"url": address, "api": load.api, "model": load.model, "server_version": version}
            runs.append({**about, "levels": [asdict(level) for level in measured]})
    except (PerfAnalyzerError, SwiftDiffusionError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if out is not None:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        summary = {"machine": machine, "requests": entries, "requests_per_window": requests, "runs": runs}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {out}", highlight=False)


def _measure(
    tool: PerfAnalyzer, load: Load, levels: Sequence[int], metrics_url: str | None, console: Console
) -> list[Level]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    measured: list[Level] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task(load.url, total=len(levels))
        for level in levels:
            progress.update(task, description=f"{load.url}, {level} at a time")
            metrics, before = _lora_metrics(load.url, metrics_url), read_statistics(load.url, load.admin_key)
            going_on = replace(load, requests=_moved_on(load.requests, measured, load.model))
            latency = measure(tool, going_on, level, Path(directory))
            models = tuple(read_statistics(load.url, load.admin_key).work_since(before))
            now = None if metrics is None else _lora_metrics(load.url, metrics_url)
            loras = None if metrics is None or now is None else now.work_since(metrics)
            measured.append(Level(level, latency, models, loras))
            progress.advance(task)
    return measured


def _lora_metrics(url: str, metrics_url: str | None) -> LoraMetrics | None:
    """The counters at the URL given, or at the default one if somebody answers there."""
    if metrics_url is not None:
        return read_lora_metrics(metrics_url)
    try:
        return read_lora_metrics(metrics_url_of(url))
    except OSError:
        return None


def _moved_on(requests: Requests, measured: Sequence[Level], model: str) -> Requests:
    """The requests from where the last measurement ended: a LoRA's first request is the first one only once."""
    sent = sum(work.calls for level in measured for work in level.models if work.model == model) % max(len(requests), 1)
    return requests[sent:] + requests[:sent]


def _input_file(text: str) -> Path:
    file = INPUTS.get(text, Path(text))
    if not file.is_file():
        raise typer.BadParameter(f"--input-data is {text!r}; wanted: {', '.join(INPUTS)} or a file")
    return file


def _parse_levels(text: str) -> list[int]:
    levels = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(levels) < 1:
        raise typer.BadParameter(f"--concurrency is {text!r}; wanted: numbers from 1, such as 1,2,4,8")
    return levels
