"""The rate of production's requests that is sustained within their SLO: this server against diffusers behind a queue.

Traces of Katz's services A and B (docs/load.md) at rates that close in on the most that each carries: at least 90 % of
all requests answered within the SLO, which is so many times what diffusers takes for such a request alone. Both have
the same cores, LoRAs and ControlNets. Then a burst of eight times half that rate, and memory over many requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from diffusers_queue import Pipelines
from machine import describe
from PIL import Image
from rich.console import Console

from swiftdiffusion.clients import AsyncClient, GenerationInfo, RequestTimeout
from swiftdiffusion.clients.load.arrivals import Burst
from swiftdiffusion.clients.load.drawing import TraceArguments, draw_trace
from swiftdiffusion.clients.load.lora_variants import write_variants
from swiftdiffusion.clients.load.open_loop import Send, replay
from swiftdiffusion.clients.load.report import Report, summarise
from swiftdiffusion.clients.load.served import Served
from swiftdiffusion.clients.load.trace import TracedRequest
from swiftdiffusion.export.repository.deployment import Deployment
from swiftdiffusion.export.repository.writing import write_pipelines
from swiftdiffusion.python_backends.common.library_messages import silence_libraries
from swiftdiffusion.python_backends.launcher import TritonServer

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "export/demo"
CONTROLNETS = ("edges", "layout")
PROMPTS = ("a red circle above a blue square", "a green star on a white background", "an orange ring below a cyan star")
ATTAINED = 0.9
FEWEST = 20
"""Requests that a trace should have at least: it lasts for as long as that takes."""

SOLO = 4

Attempt = Callable[[float], Awaitable[Report]]


def requests(
    service: str, rate: float, seconds: float, steps: int, bursts: tuple[Burst, ...] = ()
) -> list[TracedRequest]:
    """A trace's."""
    arguments = TraceArguments(service, rate, seconds, bursts, steps=steps)
    return list(draw_trace(arguments, PROMPTS).requests)


async def solo(service: str, steps: int, send: Send) -> float:
    """Median seconds of the service's first requests, one after the other, adapters and all, after one of them."""
    seconds = []
    first = requests(service, 1.0, 60.0, steps)[: SOLO + 1]
    for request in first:
        started = time.perf_counter()
        await send(request)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


async def sustained(attempt: Attempt, start: float, console: Console) -> tuple[float, list[dict[str, Any]]]:
    """The highest rate of those tried at which enough is in time, and what all of them came to."""
    tried: dict[float, Report] = {}

    async def holds(rate: float) -> bool:
        tried[rate] = report = await attempt(rate)
        console.print(f"  {rate:.3f} per second: {report.attainment:.1%} in time, counts {dict(report.counts)}")
        return report.attainment >= ATTAINED

    rate, low, high = start, 0.0, 0.0
    while not (low and high) and len(tried) < 6:
        if await holds(rate):
            low, rate = rate, rate * 1.5
        else:
            high, rate = rate, rate / 1.5
    for _ in range(2):
        if low and high:
            middle = (low * high) ** 0.5
            low, high = (middle, high) if await holds(middle) else (low, middle)
    return low, [{"rate": rate, **_short(report)} for rate, report in sorted(tried.items())]


def _short(report: Report) -> dict[str, Any]:
    values = report.as_json()
    return {
        name: values[name] for name in ("attainment", "attainment_of_admitted", "goodput", "latency_ms", "counts")
    } | {
        "lora_sources": values["lora_sources"],
        "refusal_ms": values["refusal_ms"],
    }


def resident_mib(server: TritonServer) -> float:
    """Of the server and its models, in MiB: what is theirs alone."""
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    return sum(process.memory_full_info().uss for process in processes) / 2**20


async def ours(
    server: TritonServer, loras: list[Path], settings: Settings, slo: dict[str, float], console: Console
) -> Any:
    """What the server sustains, and its burst."""
    image = {name: np.asarray(Image.open(ROOT / f"docs/{name}.png").convert("RGB")) for name in CONTROLNETS}
    served = Served(tuple(file.stem for file in loras), tuple(image.items()))
    found: dict[str, Any] = {}
    async with AsyncClient(server.grpc_url) as client:

        def sender(timeout_ms: int | None) -> Send:
            async def send(traced: TracedRequest) -> GenerationInfo:
                return (await client.generate(served.request(traced, None, timeout_ms))).info

            return send

        for service in settings.services:
            alone = await solo(service, settings.steps, sender(None))
            limit = slo[service]
            console.print(f"ours, {service}: alone {alone:.2f} s, SLO {limit:.2f} s")

            async def attempt(
                rate: float, service: str = service, limit: float = limit, bursts: tuple[Burst, ...] = ()
            ) -> Report:
                trace = requests(service, rate, max(settings.seconds, FEWEST / rate), settings.steps, bursts)
                return summarise(await replay(trace, sender(int(1000 * limit))), limit)

            rate, tried = await sustained(attempt, 1 / alone, console)
            burst = await attempt(0.5 * rate, bursts=(Burst(settings.seconds / 3, settings.seconds / 6, 8.0),))
            found[service] = {"solo_s": alone, "sustained": rate, "tried": tried, "burst_of_8_at_half": _short(burst)}
        found["memory"] = await memory(server, sender(None), settings, console)
    return found


async def memory(server: TritonServer, send: Send, settings: Settings, console: Console) -> dict[str, Any]:
    """MiB after each tenth of many requests, a few at a time."""
    trace = requests("A", 1.0, 1.2 * settings.requests + 100, 2)[: settings.requests]
    found, at_once = [], asyncio.Semaphore(6)

    async def one(request: TracedRequest) -> None:
        async with at_once:
            await send(request)

    for tenth in range(10):
        part = trace[tenth * len(trace) // 10 : (tenth + 1) * len(trace) // 10]
        await asyncio.gather(*(one(request) for request in part))
        found.append(round(resident_mib(server), 1))
        console.print(f"  {(tenth + 1) * len(trace) // 10} requests: {found[-1]:.0f} MiB")
    return {"requests": len(trace), "mib_after_each_tenth": found}


async def theirs(pipelines: Pipelines, threads: int, settings: Settings, console: Console) -> Any:
    """What diffusers behind a queue sustains; also what a request takes it alone."""
    found: dict[str, Any] = {}
    with ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(threads)) as turn:

        def sender(limit: float | None) -> Send:
            async def send(request: TracedRequest) -> None:
                try:
                    async with asyncio.timeout(limit):
                        await asyncio.get_running_loop().run_in_executor(turn, pipelines.draw, request)
                except TimeoutError as error:  # one that waits leaves the queue, one that is drawn ends there
                    raise RequestTimeout("no picture in time") from error

            return send

        for service in settings.services:
            alone = await solo(service, settings.steps, sender(None))
            limit = settings.slo_factor * alone
            console.print(f"diffusers, {service}: alone {alone:.2f} s, SLO {limit:.2f} s")

            async def attempt(rate: float, service: str = service, limit: float = limit) -> Report:
                trace = requests(service, rate, max(settings.seconds, FEWEST / rate), settings.steps)
                return summarise(await replay(trace, sender(limit)), limit)

            rate, tried = await sustained(attempt, 0.5 / alone, console)
            found[service] = {"solo_s": alone, "slo_s": limit, "sustained": rate, "tried": tried}
    return found


class Settings:
    """What is measured."""

    def __init__(self, services: list[str], seconds: float, steps: int, slo_factor: float, requests: int) -> None:
        self.services, self.seconds, self.steps = services, seconds, steps
        self.slo_factor, self.requests = slo_factor, requests


def main(
    services: Annotated[list[str], typer.Option()] = ["A", "B"],  # noqa: B006  typer's default
    seconds: Annotated[float, typer.Option(min=1, help="Of a trace, at least.")] = 60.0,
    steps: Annotated[int, typer.Option(min=1)] = 10,
    slo_factor: Annotated[float, typer.Option(min=1, help="Times diffusers' own time of a request alone.")] = 2.0,
    loras: Annotated[int, typer.Option(min=1, help="How many there are.")] = 300,
    requests_for_memory: Annotated[int, typer.Option(min=10)] = 2000,
    out: Annotated[Path, typer.Option(help="Result file.")] = ROOT / "benchmarks/results/trace_replay.json",
) -> None:
    """Sweep rates of traces to the knee, ours and diffusers'."""
    silence_libraries()
    warnings.filterwarnings("ignore", module="peft")
    machine, console, threads = describe(), Console(stderr=True), len(os.sched_getaffinity(0))
    settings = Settings(services, seconds, steps, slo_factor, requests_for_memory)
    with tempfile.TemporaryDirectory() as directory:
        catalogue, repository = Path(directory) / "loras", Path(directory) / "repository"
        write_variants(DEMO / "loras/night.safetensors", catalogue, loras, 0)
        files = sorted(catalogue.glob("*.safetensors"))
        networks = [(DEMO / f"controlnets/{name}", ROOT / f"docs/{name}.png") for name in CONTROLNETS]
        pipelines = Pipelines(DEMO / "weights", files, networks, 2.0)
        diffusers = asyncio.run(theirs(pipelines, threads, settings, console))
        del pipelines
        options = {"checkpoint": DEMO / "weights", "loras": catalogue, "guidance_scale": 2.0, "unet_shards": threads}
        deployment = Deployment.from_options(None, options, [f"{path.name}={path}" for path, _ in networks])
        write_pipelines(deployment.resolve(), repository)
        slo = {service: diffusers[service]["slo_s"] for service in services}
        with TritonServer(repository) as server:
            found = asyncio.run(ours(server, files, settings, slo, console))
    ratios = {service: found[service]["sustained"] / diffusers[service]["sustained"] for service in services}
    command = (
        f"python benchmarks/trace_replay.py --seconds {seconds:g} --steps {steps} --slo-factor {slo_factor:g} "
        f"--loras {loras} --requests-for-memory {requests_for_memory}"
    )
    written = {"command": command, "machine": machine, "sustained_over_diffusers": ratios}
    out.write_text(json.dumps({**written, "ours": found, "diffusers": diffusers}) + "\n", "utf-8")
    console.print(f"sustained ÷ diffusers': {ratios}; written to {out}")


if __name__ == "__main__":
    typer.run(main)
