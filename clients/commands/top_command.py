"""`swiftdiffusion top`: what a running server does, on the terminal."""

import time
from collections import deque
from http.client import HTTPException
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from .server_figures import ServerFigures, Snapshot, read_snapshot


def top(
    url: Annotated[
        str, typer.Option(envvar="SWIFTDIFFUSION_METRICS_URL", help="Of the server's metrics.")
    ] = "http://127.0.0.1:8002/metrics",
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    window: Annotated[float, typer.Option(min=1, help="Seconds that rates, shares and times are of.")] = 30.0,
    once: Annotated[bool, typer.Option(help="Look twice, print what happened in between, and end.")] = False,
) -> None:
    """Show who waits and denoises, rates, latencies, and how busy each model is."""
    console, errors = Console(), Console(stderr=True)
    try:
        looks = deque([read_snapshot(url, time.monotonic())])
        if once:
            time.sleep(every)
            console.print(drawn(read_snapshot(url, time.monotonic()).figures_since(looks[0])))
            return
        _follow(url, every, max(1, round(window / every)), looks, console)
    except KeyboardInterrupt:
        return
    except (OSError, HTTPException) as error:
        errors.print(f"[bold red]error:[/] {url}: {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _follow(url: str, every: float, most: int, looks: deque[Snapshot], console: Console) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            try:
                latest = read_snapshot(url, time.monotonic())
            except (OSError, HTTPException) as error:
                live.update(f"{url}: {error}", refresh=True)  # it may come again
                continue
            live.update(drawn(latest.figures_since(looks[0])), refresh=True)
            looks.append(latest)
            while len(looks) > most:
                looks.popleft()


def drawn(figures: ServerFigures) -> Group:
    """Two tables and a line."""
    pipelines = _table(
        "pipeline", "waiting", "running", "requests/s", "refused/s", "offered s/s", "in time", "p50 s", "p95 s"
    )
    pipelines.add_column("step ms by rows")
    for each in figures.pipelines:
        pipelines.add_row(
            each.pipeline,
            f"{each.waiting:.0f}",
            f"{each.running:.0f}",
            f"{each.requests:.2f}",
            f"{each.refused:.2f}",
            f"{each.offered:.2f}",
            "–" if each.in_time is None else f"{each.in_time:.1%}",
            "–" if each.p50 is None else f"{each.p50:.2f}",
            "–" if each.p95 is None else f"{each.p95:.2f}",
            "  ".join(f"≤{rows}: {ms:.1f}" for rows, ms in each.step_ms.items()) or "–",
        )
    models = _table("model", "busy", "heals", "state")
    for model in figures.models:
        state = "[red]down[/]" if model.down else "up"
        models.add_row(model.model, f"{model.busy:.0%}", f"{model.heals:.0f}", state)
    return Group(pipelines, models, f"restarts of the server: {figures.restarts:.0f}")


def _table(first: str, *others: str) -> Table:
    table = Table()
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table
