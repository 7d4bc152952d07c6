"""Goodput when more comes than can be served: who would be late is refused at once, and the others are in time.

The demo family's server with two shards. Requests alone say what one takes, requests back to back what the server can
do; then Poisson traffic at multiples of that, every request with TIMEOUT_MS of so many times the time alone.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from machine import describe
from rich.console import Console

from swiftdiffusion.clients import AsyncClient, GenerationInfo, GenerationRequest
from swiftdiffusion.clients.load.open_loop import replay
from swiftdiffusion.clients.load.report import show, summarise
from swiftdiffusion.clients.load.trace import TracedRequest
from swiftdiffusion.python_backends.launcher import TritonServer

ROOT = Path(__file__).resolve().parents[1]
SOLO = 7
PROMPT = "a red circle above a blue square"


class Load:
    """Requests of one kind to one server."""

    def __init__(self, client: AsyncClient, steps: int, timeout_ms: int | None = None) -> None:
        self._client, self._steps, self._timeout_ms = client, steps, timeout_ms

    async def send(self, traced: TracedRequest) -> GenerationInfo:
        """One request."""
        request = GenerationRequest(traced.prompt, seed=traced.seed, steps=self._steps, timeout_ms=self._timeout_ms)
        return (await self._client.generate(request)).info

    async def solo(self, requests: int = SOLO, skipped: int = 2) -> float:
        """Median seconds of requests alone, without the first ones."""
        seconds = []
        for seed in range(requests):
            started = time.perf_counter()
            await self.send(self._traced(0.0, seed))
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[skipped:])

    async def capacity(self, seconds: float, at_once: int = 8) -> float:
        """Requests per second of so many callers that send the next when they have an answer."""
        ended, deadline = 0, time.perf_counter() + seconds

        async def caller(seed: int) -> None:
            nonlocal ended
            while time.perf_counter() < deadline:
                await self.send(self._traced(0.0, seed))
                ended += 1

        started = time.perf_counter()
        await asyncio.gather(*(caller(seed) for seed in range(at_once)))
        return ended / (time.perf_counter() - started)

    def poisson(self, rate: float, seconds: float, seed: int) -> list[TracedRequest]:
        """Arrivals of a seed."""
        random, at, made = np.random.default_rng(seed), 0.0, []
        while (at := at + random.exponential(1 / rate)) < seconds:
            made.append(self._traced(at, len(made)))
        return made

    def _traced(self, at: float, seed: int) -> TracedRequest:
        return TracedRequest(at=at, prompt=PROMPT, seed=seed, steps=self._steps, controlnets=(), loras=())


async def measure(
    url: str, steps: int, factor: float, rates: list[float], seconds: float, rounds: int, console: Console
) -> dict[str, object]:
    """All rates in turn, so many times; of each the round of the median goodput."""
    async with AsyncClient(url) as client:
        free = Load(client, steps)
        solo = await free.solo()
        capacity = await free.capacity(seconds / 2)
        console.print(f"alone {1000 * solo:.0f} ms, capacity {capacity:.2f} per second")
        load = Load(client, steps, int(1000 * factor * solo))
        measured: dict[float, list[dict[str, Any]]] = {rate: [] for rate in rates}
        for number in range(rounds):
            for rate, of_rate in measured.items():
                await asyncio.sleep(5)
                outcomes = await replay(load.poisson(rate * capacity, seconds, number), load.send)
                report = summarise(outcomes, factor * solo)
                await asyncio.sleep(5)
                after, then = await free.solo(1, 0), await free.solo()
                show(console, report, f"{rate:g} × capacity")
                times = {"seconds_5_s_later": after, "seconds_alone_then": then}
                of_rate.append({"rate": rate, **times, **report.as_json(), "sentences": len(report.sentences)})
    found = []
    for of_rate in measured.values():
        goodputs = [each["goodput"] for each in of_rate]
        median = next(each for each in of_rate if each["goodput"] == statistics.median_low(goodputs))
        attained = [each["attainment_of_admitted"] for each in of_rate]
        found.append({**median, "goodput_of_rounds": goodputs, "attainment_of_admitted_of_rounds": attained})
    best = max(each["goodput"] for each in found) or 1.0
    for each in found:
        each["goodput_over_best"] = each["goodput"] / best
    return {"solo_s": solo, "capacity": capacity, "slo_factor": factor, "rates": found}


def main(
    rates: Annotated[list[float], typer.Option(help="Multiples of the capacity.")] = [0.5, 0.8, 1.0, 1.5, 3.0, 10.0],  # noqa: B006  typer's default
    seconds: Annotated[float, typer.Option(min=1)] = 40.0,
    steps: Annotated[int, typer.Option(min=1)] = 20,
    slo_factor: Annotated[float, typer.Option(min=1, help="TIMEOUT_MS in times of a request alone.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, help="Times that all rates are measured.")] = 1,
    out: Annotated[Path, typer.Option(help="Result file.")] = ROOT / "benchmarks/results/overload.json",
) -> None:
    """Measure goodput under overload."""
    machine, console = describe(), Console()
    with TritonServer(ROOT / "model_repository") as server:
        found = asyncio.run(measure(server.grpc_url, steps, slo_factor, rates, seconds, rounds, console))
    given = " ".join(f"--rates {rate:g}" for rate in rates)
    given += f" --rounds {rounds} --seconds {seconds:g} --steps {steps} --slo-factor {slo_factor:g}"
    command = f"python benchmarks/overload.py {given}"
    out.write_text(json.dumps({"command": command, "machine": machine, **found}) + "\n", "utf-8")
    console.print(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
