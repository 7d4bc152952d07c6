"""Throughput of requests that come at once, each with LoRAs of its own, ÷ the same requests without.

The demo family's server with two shards; rounds alternate, so that whatever else the machine does meets both. All LoRAs
are in host memory before: what is measured is that batches never share a set.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from machine import describe
from rich.console import Console

from swiftdiffusion.clients import Client, GenerationRequest, Lora
from swiftdiffusion.python_backends.launcher import TritonServer

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("hatched", "night", "outline", "sunset")
WARM_UP = 2
"""Rounds that are not counted."""


def seconds(client: Client, sets: Sequence[Sequence[str]], steps: int, number: int) -> tuple[float, dict[str, int]]:
    """Of requests with these sets and a prompt of their own, all at once; and how their rows had their LoRAs."""
    requests = [
        GenerationRequest(
            f"a red circle above a blue square {number}",
            seed=seed,
            steps=steps,
            loras=tuple(Lora(name) for name in names),
            lora_bound=0 if names else None,
        )
        for seed, names in enumerate(sets)
    ]
    started = time.perf_counter()
    with ThreadPoolExecutor(len(sets)) as threads:
        results = list(threads.map(client.generate, requests))
    took = time.perf_counter() - started
    paths: dict[str, int] = {}
    for result in results:
        for path, rows in result.info.lora_path.items():
            paths[path] = paths.get(path, 0) + rows
    return took, paths


def measure(client: Client, sets: Sequence[Sequence[str]], steps: int, rounds: int) -> dict[str, object]:
    """One setting."""
    bare: list[list[str]] = [[] for _ in sets]
    pairs, paths = [], {}
    for number in range(WARM_UP + rounds):
        with_loras, paths = seconds(client, sets, steps, 2 * number)
        without, _ = seconds(client, bare, steps, 2 * number + 1)  # both have prompts that nobody encoded before
        pairs.append((with_loras, without))
    kept = pairs[WARM_UP:]
    ratios = [without / with_loras for with_loras, without in kept]
    return {
        "requests": len(sets),
        "loras_each": len(sets[0]),
        "median_s": {
            "with": statistics.median(each for each, _ in kept),
            "without": statistics.median(each for _, each in kept),
        },
        "throughput_over_bare": statistics.median(ratios),
        "quartiles": statistics.quantiles(ratios, n=4),
        "rows_of_the_last_round": paths,
    }


def main(
    rounds: Annotated[int, typer.Option(min=3)] = 15,
    steps: Annotated[int, typer.Option(min=1)] = 20,
    out: Annotated[Path, typer.Option(help="Result file.")] = ROOT / "benchmarks/results/mixed_loras.json",
) -> None:
    """Measure what it costs that every request brings its own LoRAs."""
    machine = describe()
    pairs = [list(pair) for pair in itertools.combinations(NAMES, 2)]
    with TritonServer(ROOT / "model_repository") as server, Client(server.grpc_url) as client:
        settings = [measure(client, sets, steps, rounds) for sets in ([[name] for name in NAMES], pairs)]
    command = f"python benchmarks/mixed_loras.py --rounds {rounds} --steps {steps}"
    out.write_text(json.dumps({"command": command, "machine": machine, "settings": settings}) + "\n", "utf-8")
    Console().print_json(data=settings)


if __name__ == "__main__":
    typer.run(main)
