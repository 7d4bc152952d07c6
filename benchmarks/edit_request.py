"""What a whole mask-aware request takes, beside an exact one, fewer steps, and diffusers: SDXL's blocks at 1/5 width.

A picture of 512 × 512, a square mask of a fifth of it, Euler, guidance 2, strength 1; one shard, one thread. All is
counted: encoding prompt and picture, all steps, decoding.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import EulerDiscreteScheduler, StableDiffusionXLInpaintPipeline
from edit_quality import OWN, WAYS
from lora_workloads import ROOT, sdxl_modules
from machine import describe
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swiftdiffusion.clients import Client, GenerationRequest
from swiftdiffusion.export.repository.serving_options import ServingOptions
from swiftdiffusion.export.repository.writing import write_repository
from swiftdiffusion.python_backends.launcher import TritonServer

SIDE, EDGE, STEPS, WRITTEN_S = 512, 229, 20, 5.0
OUT = ROOT / "benchmarks/results/edit_request.json"
FIRST = "exact, leaving entries"


def main(
    rounds: Annotated[int, typer.Option(min=2)] = 3,
    out: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = OUT,
) -> None:
    """Measure requests of every way in turns."""
    torch.set_num_threads(1)
    machine = describe()
    seconds: dict[str, list[float]] = {way: [] for way in (FIRST, "exact", *WAYS, "diffusers")}
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:EDGE, :EDGE] = 255
    request = GenerationRequest(
        "a red circle above a blue square",
        seed=1,
        steps=STEPS,
        scheduler="euler",
        guidance_scale=2.0,
        strength=1.0,
        init_image=picture,
        mask_image=mask,
    )
    with tempfile.TemporaryDirectory() as directory:
        (networks := Path(directory) / "networks").mkdir()
        checkpoint = sdxl_modules(networks)
        theirs = StableDiffusionXLInpaintPipeline.from_pretrained(networks, dtype=torch.float32)
        theirs.scheduler = EulerDiscreteScheduler.from_config(theirs.scheduler.config)
        theirs.set_progress_bar_config(disable=True)
        options = ServingOptions(1, (), 1, "float32", 8, STEPS, 2.0, SIDE)
        write_repository(checkpoint, Path(directory) / "repository", options)

        def diffusers() -> None:
            theirs(
                request.prompt,
                image=Image.fromarray(picture),
                mask_image=Image.fromarray(mask),
                height=SIDE,
                width=SIDE,
                strength=1.0,
                num_inference_steps=STEPS,
                guidance_scale=2.0,
                generator=torch.Generator().manual_seed(1),
            )

        with TritonServer(Path(directory) / "repository") as server, Client(server.grpc_url) as client:
            for number in track(range(rounds), "rounds"):
                begun = replace(request, init_image=picture ^ number)  # another one, of which nothing is known
                seconds["exact"].append(_seconds(lambda begun=begun: client.generate(begun)))  # type: ignore[misc]
                client.generate(replace(begun, steps=2, mask_aware=OWN % "fast"))  # it is seen
                seconds[FIRST].append(_seconds(lambda begun=begun: client.generate(begun)))  # type: ignore[misc]
                time.sleep(WRITTEN_S)
                for way, changes in WAYS.items():
                    asked = replace(begun, **changes)
                    seconds[way].append(_seconds(lambda way=way, asked=asked: _checked(client, way, asked)))  # type: ignore[misc]
                seconds["diffusers"].append(_seconds(diffusers))
    ratios = {
        way: statistics.median(exact / own for exact, own in zip(seconds["exact"], each, strict=False))
        for way, each in seconds.items()
    }
    ways = {
        way: {"median_s": round(statistics.median(each), 2), "times_faster": round(ratios[way], 2)}
        for way, each in seconds.items()
    }
    command = f"python benchmarks/edit_request.py --rounds {rounds}"
    out.write_text(json.dumps({"command": command, "machine": machine, "ways": ways}) + "\n", "utf-8")
    table = Table("", "s", "times faster than exact", title=f"{SIDE} × {SIDE}, {STEPS} steps")
    for way, each in ways.items():
        table.add_row(way, f"{each['median_s']:g}", f"{each['times_faster']:g}")
    Console().print(table)


def _checked(client: Client, way: str, request: GenerationRequest) -> None:
    told = client.generate(request).info.editing
    if "template" in way and (told is None or (told.source, told.misses) != ("template", 0)):
        raise RuntimeError(f"a request lacked entries: {told}")


def _seconds(do: Callable[[], object]) -> float:
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
