"""`swiftdiffusion trace`: requests as a service in production got them, as a file for `replay`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..perf.load import INPUTS, read_requests
from .adapters import KINDS, lru_loads
from .arrivals import Burst
from .drawing import RandomBursts, TraceArguments, draw_trace, sets_of, statistics_of
from .published import SERVICES
from .trace import Trace


def trace(
    out: Annotated[Path, typer.Argument(help="File to write.")] = Path("out/trace.jsonl"),
    service: Annotated[str, typer.Option(help="Whose statistics: A (mostly two LoRAs) or B (mostly one).")] = "A",
    rate: Annotated[float, typer.Option(min=1e-6, help="Requests per second outside bursts.")] = 1.0,
    seconds: Annotated[float, typer.Option(min=1e-6, help="How long requests arrive.")] = 120.0,
    burst: Annotated[
        list[str] | None, typer.Option(metavar="AT:SECONDS:FACTOR", help="Multiplies the rate for a time. Repeatable.")
    ] = None,
    bursty: Annotated[
        str | None, typer.Option(metavar="FACTOR:SECONDS:CALM", help="Bursts at random, with means of both times.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps of each request.")] = 20,
    lora_scale: Annotated[float, typer.Option(help="Weight of each LoRA.")] = 0.8,
    prompts: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="One a line. Default: the demo family's.")
    ] = None,
) -> None:
    """Draw a trace of requests: when each arrives, with which ControlNets and LoRAs by rank of popularity.

    The same arguments give the same file. What was drawn is shown beside what is published of the service.
    """
    if service not in SERVICES:
        raise typer.BadParameter(f"--service is {service!r}; wanted: {' or '.join(SERVICES)}")
    arguments = TraceArguments(
        service=service,
        rate=rate,
        seconds=seconds,
        bursts=tuple(Burst(*_three_numbers("--burst", text, "AT:SECONDS:FACTOR")) for text in burst or ()),
        random_bursts=None if bursty is None else _random_bursts(bursty),
        seed=seed,
        steps=steps,
        lora_scale=lora_scale,
    )
    drawn = draw_trace(arguments, _read_prompts(prompts))
    drawn.write(out)
    console = Console()
    console.print(_beside_published(drawn, service))
    mean = len(drawn.requests) / seconds
    console.print(f"{out}: {len(drawn.requests)} requests, {mean:.2f} per second", highlight=False, soft_wrap=True)


def _beside_published(drawn: Trace, service: str) -> Table:
    table = Table(title=f"service {service}, per request", title_justify="left")
    for heading in ("", "published", "drawn"):
        table.add_column(heading, justify="right" if heading else "left")
    for kind, name in zip(KINDS, ("ControlNets", "LoRAs"), strict=True):
        statistics, sets = statistics_of(service, kind), sets_of(drawn, kind)
        mean = sum(map(len, sets)) / max(1, len(sets))
        table.add_row(name, f"{statistics.mean_per_request:.3f}", f"{mean:.3f}")
        loads = lru_loads(sets, len(statistics.lru_loads))
        for places, (published, ours) in enumerate(zip(statistics.lru_loads, loads, strict=True), 1):
            table.add_row(f"  loads, cache of {places}", f"{published:.3f}", f"{ours:.3f}")
        table.add_section()
    return table


def _random_bursts(text: str) -> RandomBursts:
    factor, seconds, calm = _three_numbers("--bursty", text, "FACTOR:SECONDS:CALM")
    return RandomBursts(factor, seconds, calm)


def _three_numbers(option: str, text: str, form: str) -> tuple[float, float, float]:
    try:
        first, second, third = (float(part) for part in text.split(":"))
    except ValueError:
        first = second = third = -1.0
    if not (0 <= first < 1e9 and 0 < second < 1e9 and 0 < third < 1e9):
        raise typer.BadParameter(f"{option} is {text!r}; wanted: {form}, numbers above 0 such as 60:10:8")
    return first, second, third


def _read_prompts(file: Path | None) -> list[str]:
    if file is None:
        return [entry["PROMPT"][0] for entry in read_requests(INPUTS["plain"], {})]
    prompts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise typer.BadParameter(f"--prompts {file} has none")
    return prompts
