"""What the gateway adds to a picture: the same requests through it and straight over gRPC, turn by turn.

Requests have few steps, so that what is measured is not lost in the denoising, which all have alike.
"""

from __future__ import annotations

import base64
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx2
import numpy as np
import typer
from machine import describe
from openai import OpenAI
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gateway_process import gateway_process
from swiftdiffusion.clients import Client, GenerationRequest
from swiftdiffusion.python_backends.launcher import TritonServer

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 5
"""Rounds that are not counted."""

PROMPT = "a red circle above a blue square"


def measure(server: TritonServer, gateway_url: str, steps: int, rounds: int) -> dict[str, Any]:
    """Medians of each way, and of the rounds' differences, in milliseconds."""
    http = httpx2.Client(base_url=gateway_url, timeout=60)
    openai = OpenAI(base_url=f"{gateway_url}/v1", api_key="none", max_retries=0)
    encoding: list[float] = []

    with Client(server.grpc_url) as client:

        def raw(seed: int) -> None:
            client.generate(GenerationRequest(PROMPT, seed=seed, steps=steps))

        def png(seed: int) -> None:
            result = client.generate(GenerationRequest(PROMPT, seed=seed, steps=steps, output_format="png"))
            encoding.append(result.info.timings_ms["encoding"])

        def plain(seed: int) -> list[bytes]:
            body = {"prompt": PROMPT, "model": "sdxl", "seed": seed, "num_inference_steps": steps}
            answer = http.post("/v1/images/generations", json=body).raise_for_status().json()
            return [base64.b64decode(each["b64_json"]) for each in answer["data"]]

        def through(seed: int, **options: Any) -> list[bytes]:
            extras = {"seed": seed, "num_inference_steps": steps}
            answer = openai.images.generate(model="sdxl", prompt=PROMPT, extra_body=extras, **options)
            return [base64.b64decode(each.b64_json or "") for each in answer.data or ()]

        def streamed(seed: int) -> None:
            extras = {"seed": seed, "num_inference_steps": steps}
            for _ in openai.images.generate(model="sdxl", prompt=PROMPT, stream=True, extra_body=extras):
                pass

        ways: dict[str, Callable[[int], object]] = {
            "gRPC, raw pixels": raw,
            "gRPC, PNG": png,
            "gateway, PNG": plain,
            "gateway, PNG, OpenAI's client": through,
            "the same, streamed": streamed,
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        names = list(ways)
        for index in track(range(rounds + WARM_UP), f"{rounds} rounds of {len(ways)}"):
            for name in np.roll(names, index):  # nobody always comes first
                start = time.perf_counter()
                ways[name](index)
                times[name].append(1000 * (time.perf_counter() - start))
    kept = {name: values[WARM_UP:] for name, values in times.items()}

    def added(way: str, to: str) -> dict[str, float]:
        quartiles = statistics.quantiles([a - b for a, b in zip(kept[way], kept[to], strict=True)], n=4)
        return dict(
            zip(("lower_quartile", "median", "upper_quartile"), (round(each, 2) for each in quartiles), strict=True)
        )

    return {
        "steps": steps,
        "rounds": rounds,
        "median_ms": {name: round(statistics.median(values), 2) for name, values in kept.items()},
        "added_ms": {
            "by the gateway (gateway, PNG - gRPC, PNG)": added("gateway, PNG", "gRPC, PNG"),
            "by the gateway and encoding (gateway, PNG - gRPC, raw pixels)": added("gateway, PNG", "gRPC, raw pixels"),
            "by OpenAI's client to plain HTTP": added("gateway, PNG, OpenAI's client", "gateway, PNG"),
            "by streaming to one answer": added("the same, streamed", "gateway, PNG, OpenAI's client"),
        },
        "encoding_median_ms": round(statistics.median(encoding[WARM_UP:]), 2),
    }


def main(
    steps: Annotated[int, typer.Option(min=1, help="Of each picture.")] = 2,
    rounds: Annotated[int, typer.Option(min=4)] = 100,
    out: Annotated[Path, typer.Option(help="Result file.")] = ROOT / "benchmarks/results/gateway.json",
) -> None:
    """Measure what the gateway adds to a request."""
    console = Console()
    with TritonServer(ROOT / "model_repository") as server, gateway_process(server.grpc_url) as url:
        measured = measure(server, url, steps, rounds)
    command = f"python benchmarks/gateway.py --steps {steps} --rounds {rounds}"
    out.write_text(json.dumps({"command": command, "machine": describe(), **measured}) + "\n", "utf-8")
    table = Table("way", "median, ms")
    for name, median in measured["median_ms"].items():
        table.add_row(name, f"{median:.1f}")
    for name, quartiles in measured["added_ms"].items():
        table.add_row(f"added {name}", f"{quartiles['median']:.1f}")
    console.print(table)
    console.print(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
