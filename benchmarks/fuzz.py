"""The demo server under thousands of requests that nobody should send: who lives, and what is answered.

python benchmarks/fuzz.py --requests 5000
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from machine import describe
from rich.console import Console
from rich.progress import track

from fuzz_requests import Fuzzer
from fuzzing import Tally, fuzz, processes
from swiftdiffusion.clients import Client, GenerationRequest
from swiftdiffusion.python_backends.launcher import AdminKey, TritonServer

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("sdxl", *sorted(path.name for path in (ROOT / "model_repository").iterdir() if path.name != "sdxl"))
GOOD = GenerationRequest("a red circle above a blue square", seed=7, steps=4)


def main(
    requests: Annotated[int, typer.Option(min=1)] = 5000,
    seed: Annotated[int, typer.Option(help="The same seed makes the same requests.")] = 13,
    out: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = ROOT / "benchmarks/results/fuzz.json",
) -> None:
    """Exit status 1 if a process ended, an answer was not among the documented ones, or the good picture changed."""
    console = Console(stderr=True)
    tally = Tally()
    with (
        TritonServer(ROOT / "model_repository", admin_key=AdminKey.random()) as server,
        Client(server.grpc_url, retries=3) as client,
    ):
        expected, before = client.generate(GOOD).image, processes(server.pid)
        start = time.monotonic()
        sent = fuzz(server.http_url, server.grpc_url, Fuzzer(MODELS, seed), requests)
        for outcome in track(sent, "fuzzing", requests, console=console):
            tally.add(outcome)
        seconds = time.monotonic() - start
        same_processes = processes(server.pid) == before
        same_picture = same_processes and client.generate(GOOD).image.tobytes() == expected.tobytes()
    result = {
        "command": f"python benchmarks/fuzz.py --requests {requests} --seed {seed}",
        "machine": describe(),
        "seconds": round(seconds, 1),
        "slowest_answer_s": round(tally.slowest_s, 2),
        "all_processes_live": same_processes,
        "next_picture_is_the_same": same_picture,
        "undocumented": len(tally.undocumented),
        "answers": dict(sorted(tally.counts.items())),
        "server_errors": dict(tally.server_errors.most_common()),
    }
    out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    for outcome in tally.undocumented[:10]:
        console.print(outcome, markup=False)
    console.print(f"written to {out}", highlight=False)
    if tally.undocumented or not same_picture:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
