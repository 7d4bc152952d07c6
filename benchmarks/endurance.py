"""Half an hour of service A's trace: the memory of every process and the latency, from one tenth of it to the next.

python benchmarks/endurance.py --minutes 30
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from machine import describe
from PIL import Image
from rich.console import Console
from trace_replay import CONTROLNETS, DEMO, ROOT, requests, solo

from swiftdiffusion.clients import AsyncClient, GenerationInfo
from swiftdiffusion.clients.load.lora_variants import write_variants
from swiftdiffusion.clients.load.open_loop import replay
from swiftdiffusion.clients.load.outcomes import Outcome, Status
from swiftdiffusion.clients.load.served import Served
from swiftdiffusion.clients.load.trace import TracedRequest
from swiftdiffusion.export.repository.deployment import Deployment
from swiftdiffusion.export.repository.writing import write_pipelines
from swiftdiffusion.python_backends.launcher import TritonServer
from swiftdiffusion.python_backends.launcher.model_processes import model_processes

PARTS = 10
TRITONSERVER = "tritonserver"


def resident_mib(server: TritonServer) -> dict[str, float]:
    """By model, each of which has one process here, and of tritonserver: what is theirs alone."""
    processes = {TRITONSERVER: server.pid} | {each.model: each.pid for each in model_processes(server.pid)}
    return {name: psutil.Process(pid).memory_full_info().uss / 2**20 for name, pid in sorted(processes.items())}


async def endure(
    server: TritonServer, served: Served, minutes: float, load: float, steps: int, console: Console
) -> dict[str, Any]:
    """A trace at so much of what one request at a time would be."""
    part_s = 60 * minutes / PARTS
    memory: list[dict[str, float]] = []
    async with AsyncClient(server.grpc_url) as client:

        async def send(traced: TracedRequest) -> GenerationInfo:
            return (await client.generate(served.request(traced, None, None))).info

        async def look() -> None:
            for part in range(PARTS):
                await asyncio.sleep(part_s)
                memory.append(resident_mib(server))
                passed = (part + 1) * minutes / PARTS
                console.print(f"  {passed:g} of {minutes:g} minutes: {sum(memory[-1].values()):.0f} MiB")

        alone = await solo("A", steps, send)
        async with asyncio.TaskGroup() as group:
            group.create_task(look())
            outcomes = await replay(requests("A", load / alone, 60 * minutes, steps), send)
    answered = [each for each in outcomes if each.status is Status.OK]
    parts = [[each for each in answered if int(each.at // part_s) == part] for part in range(PARTS)]
    return {
        "solo_s": round(alone, 3),
        "requests": len(outcomes),
        "failed": len(outcomes) - len(answered),
        "latency_s": {
            "median": [_quantile(part, 0.5) for part in parts],
            "p95": [_quantile(part, 0.95) for part in parts],
        },
        "mib": {name: [round(each[name], 1) for each in memory] for name in memory[0]},
        "mib_last_over_third": round(sum(memory[-1].values()) / sum(memory[2].values()), 3),
    }


def _quantile(outcomes: list[Outcome], quantile: float) -> float | None:
    if not outcomes:
        return None
    return round(float(np.quantile([each.seconds for each in outcomes], quantile)), 2)


def main(
    minutes: Annotated[float, typer.Option(min=1)] = 30.0,
    load: Annotated[float, typer.Option(min=0.1, help="Requests per time that one takes alone.")] = 0.5,
    steps: Annotated[int, typer.Option(min=1)] = 10,
    loras: Annotated[int, typer.Option(min=1, help="How many there are.")] = 300,
    out: Annotated[Path, typer.Option(help="Result file.")] = ROOT / "benchmarks/results/endurance.json",
) -> None:
    """Serve a trace for long; the figures are of its tenths."""
    machine, console = describe(), Console(stderr=True)
    with tempfile.TemporaryDirectory() as directory:
        catalogue, repository = Path(directory) / "loras", Path(directory) / "repository"
        write_variants(DEMO / "loras/night.safetensors", catalogue, loras, 0)
        images = {name: np.asarray(Image.open(ROOT / f"docs/{name}.png").convert("RGB")) for name in CONTROLNETS}
        served = Served(tuple(file.stem for file in sorted(catalogue.iterdir())), tuple(images.items()))
        options = {"checkpoint": DEMO / "weights", "loras": catalogue, "guidance_scale": 2.0, "unet_shards": 2}
        networks = [f"{name}={DEMO / 'controlnets' / name}" for name in CONTROLNETS]
        write_pipelines(Deployment.from_options(None, options, networks).resolve(), repository)
        with TritonServer(repository) as server:
            found = asyncio.run(endure(server, served, minutes, load, steps, console))
    command = f"python benchmarks/endurance.py --minutes {minutes:g} --load {load:g} --steps {steps} --loras {loras}"
    out.write_text(json.dumps({"command": command, "machine": machine, **found}) + "\n", "utf-8")
    console.print(f"written to {out}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
