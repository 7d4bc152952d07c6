"""`swiftdiffusion replay`: a trace against a running server, in an open loop."""

import asyncio
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..client.async_client import DEFAULT_URL, AsyncClient
from ..client.errors import SwiftDiffusionError
from ..client.result import GenerationInfo
from ..perf.lora_mix import NamesIn
from .open_loop import Send, replay, solo_seconds
from .outcomes import Outcome
from .plot import plot
from .report import show, summarise
from .served import Served
from .trace import Trace, TracedRequest, TraceError, read_trace

DEFAULT_SLO_FACTOR = 2.0
_CLIENT_GRACE_SECONDS = 1.0


def replay_trace(
    context: typer.Context,
    trace: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="File of `swiftdiffusion trace`.")],
    url: Annotated[
        str, typer.Option(envvar="SWIFTDIFFUSION_URL", help="grpc://HOST:PORT or http://HOST:PORT.")
    ] = DEFAULT_URL,
    model: Annotated[str | None, typer.Option(help="Entry model; default: sdxl or sd15, as the server has.")] = None,
    loras: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="The server's LoRA catalogue, for the trace's; else without."),
    ] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=IMAGE", help="One for the trace's ControlNets; repeatable. None: without."),
    ] = None,
    rate_scale: Annotated[float, typer.Option(min=1e-6, help="Requests arrive so many times as fast.")] = 1.0,
    slo_ms: Annotated[float | None, typer.Option(min=0, help="The latency that a picture may have.")] = None,
    slo_factor: Annotated[
        float | None,
        typer.Option(
            min=0, help=f"The same, times that of requests alone, without LoRAs. Default: {DEFAULT_SLO_FACTOR:g}."
        ),
    ] = None,
    timeout_ms: Annotated[int | None, typer.Option(min=1, help="When requests give up.")] = None,
    lora_bound: Annotated[
        int | None, typer.Option(min=0, help="Steps that may run before LoRAs are loaded; 0 waits for them.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw latencies there, such as out/x.png.")] = None,
) -> None:
    """Send a trace's requests at their times, whatever is in flight, and report on latency, goodput and refusals."""
    if slo_ms is not None and slo_factor is not None:
        raise typer.BadParameter("--slo-ms and --slo-factor exclude each other")
    read = _read(trace)
    served = Served(_names(context.obj, loras), _controlnets(controlnet or []))
    console = Console(stderr=True)

    async def run() -> tuple[list[Outcome], float, str]:
        patience = None if timeout_ms is None else timeout_ms / 1000 + _CLIENT_GRACE_SECONDS
        async with AsyncClient(url, model, patience) as client:
            await client.model()

            async def send(traced: TracedRequest) -> GenerationInfo:
                return (await client.generate(served.request(traced, lora_bound, timeout_ms))).info

            version = await client.version()
            slo = await slo_seconds(read, send, slo_ms, slo_factor)
            return await with_progress(read, send, rate_scale, console), slo, version

    try:
        outcomes, slo, version = asyncio.run(run())
    except SwiftDiffusionError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    report = summarise(outcomes, slo)
    show(Console(), report, f"{trace.name} × {rate_scale:g} at {url}")
    if json_file is not None:
        written = {
            "command": shlex.join(["swiftdiffusion", *sys.argv[1:]]),
            "client_machine": _machine(),
            "server": {"url": url, "version": version},
            "trace": {"digest": read.digest, **read.arguments},
            "rate_scale": rate_scale,
            "adapters": {"loras": len(served.loras), "controlnets": [name for name, _ in served.controlnets]},
            "report": report.as_json(),
        }
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    if plot_file is not None:
        plot(outcomes, slo, plot_file, f"{trace.name} × {rate_scale:g}")


async def with_progress(read: Trace, send: Send, rate_scale: float, console: Console) -> list[Outcome]:
    """`replay`, with a bar of the requests that have ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(read.requests))
        in_flight = 0

        def count(change: int) -> None:
            nonlocal in_flight
            in_flight += change
            progress.update(task, advance=max(0, -change), description=f"{in_flight} in flight")

        return await replay(read.requests, send, rate_scale, lambda: count(1), lambda outcome: count(-1))


async def slo_seconds(read: Trace, send: Send, slo_ms: float | None, slo_factor: float | None) -> float:
    """The SLO that is given, else the factor times the latency of requests alone."""
    if slo_ms is not None:
        return slo_ms / 1000
    factor = DEFAULT_SLO_FACTOR if slo_factor is None else slo_factor
    return factor * await solo_seconds(read.requests, send)


def _read(file: Path) -> Trace:
    try:
        read = read_trace(file)
    except TraceError as error:
        raise typer.BadParameter(str(error)) from error
    if not read.requests:
        raise typer.BadParameter(f"{file} has no requests")
    return read


def _names(names_in: NamesIn, directory: Path | None) -> tuple[str, ...]:
    if directory is None:
        return ()
    try:
        return tuple(names_in(directory))
    except ValueError as error:
        raise typer.BadParameter(f"{directory}: {error}") from error


def _controlnets(texts: list[str]) -> tuple[tuple[str, np.ndarray], ...]:
    parsed: list[tuple[str, np.ndarray]] = []
    for text in texts:
        name, equals, file = text.partition("=")
        if not name or not equals or not Path(file).is_file():
            raise typer.BadParameter(f"--controlnet is {text!r}; wanted: NAME=IMAGE, the image a file")
        with Image.open(file) as opened:
            parsed.append((name, np.asarray(opened.convert("RGB"))))
    if len({image.shape for _, image in parsed}) > 1:
        raise typer.BadParameter("the images of --controlnet differ in size; wanted: all of one")
    return tuple(parsed)


def _machine() -> dict[str, object]:
    return {
        "cpus": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
