"""Requests with 0, 1 and 2 ControlNets and 0, 1 and 2 LoRAs that the server has never seen, beside diffusers.

Rounds alternate between all ways of asking, so that whatever else the machine does meets all of them. ControlNets have
the demo UNet's encoder and random weights: what they draw does not matter here, what they take does.

  ours       one shard of one thread, each ControlNet a process of one thread; LoRAs at bound 0
  diffusers  its ControlNet pipeline with as many threads as there are cores; LoRAs by load_lora_weights and fuse_lora,
             then unfused and unloaded, which counts too
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import ControlNetModel, DiffusionPipeline, StableDiffusionXLControlNetPipeline
from lora_workloads import ROOT, Files
from machine import describe
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swiftdiffusion.clients import Client, ControlNet, GenerationRequest, Lora
from swiftdiffusion.export.repository import write_repository
from swiftdiffusion.export.serving_options import ServedControlNet, ServingOptions
from swiftdiffusion.python_backends.checkpoint import Checkpoint
from swiftdiffusion.python_backends.server import TritonServer

WARM_UP = 2
PROMPT = "a red circle above a blue square on a white background"
CASES = tuple(product((0, 1, 2), (0, 1, 2)))
"""Numbers of ControlNets and of cold LoRAs."""

Times = dict[tuple[int, int], list[float]]


class Diffusers:
    """The pipelines as their documentation puts ControlNets and LoRAs on them."""

    def __init__(self, checkpoint: Checkpoint, networks: list[Path], image: np.ndarray, steps: int) -> None:
        base: Any = DiffusionPipeline.from_pretrained(checkpoint.path, dtype=torch.float32)
        loaded = [ControlNetModel.from_pretrained(path, dtype=torch.float32) for path in networks]
        self._pipelines: list[Any] = [base]
        for count in range(1, len(loaded) + 1):
            used = loaded[:count] if count > 1 else loaded[0]
            self._pipelines.append(StableDiffusionXLControlNetPipeline.from_pipe(base, controlnet=used))
        for pipeline in self._pipelines:
            pipeline.set_progress_bar_config(disable=True)
        self._image, self._steps = Image.fromarray(image), steps

    def draw(self, controlnets: int, files: list[Path], seed: int) -> None:
        """A picture, and the pipeline as it was."""
        pipeline = self._pipelines[controlnets]
        names = [file.stem for file in files]
        for file, name in zip(files, names, strict=True):
            pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
        if names:
            pipeline.set_adapters(names)
            pipeline.fuse_lora(adapter_names=names)
        images = [self._image] * controlnets
        controls = {"image": images if controlnets > 1 else images[0]} if controlnets else {}
        pipeline(
            PROMPT,
            num_inference_steps=self._steps,
            guidance_scale=2.0,
            generator=torch.Generator("cpu").manual_seed(seed),
            **controls,
        )
        if names:
            pipeline.unfuse_lora()
            pipeline.unload_lora_weights()


def measure(rounds: int, steps: int, rank: int) -> tuple[Times, Times]:
    """Seconds of every case, ours and diffusers'."""
    ours: Times = defaultdict(list)
    theirs: Times = defaultdict(list)
    checkpoint = Checkpoint(ROOT / "export/demo/weights")
    unet = checkpoint.load_unet(torch.device("cpu"), torch.float32)
    height, width = checkpoint.default_size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)

    def timed(times: list[float], call: Callable[[], Any]) -> None:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        loras = directory / "loras"
        loras.mkdir()
        files = Files(loras, unet, (rank,))
        networks = [directory / name for name in ("first", "second")]
        for path in networks:
            ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 96, 256)).save_pretrained(path)
        served = tuple(ServedControlNet(path.name, path) for path in networks)
        options = ServingOptions(
            1, (), 1, "float32", 8, steps, 2.0, max(height, width), loras=loras, controlnets=served
        )
        write_repository(checkpoint, directory / "repository", options)
        diffusers = Diffusers(checkpoint, networks, image, steps)
        with TritonServer(directory / "repository") as server, Client(server.grpc_url) as client:

            def ask(controlnets: int, chosen: list[Path], seed: int) -> Any:
                return client.generate(
                    GenerationRequest(
                        PROMPT,
                        seed=seed,
                        loras=[Lora(file.stem, 0.5) for file in chosen],
                        lora_bound=0,
                        controlnets=[ControlNet(path.name) for path in networks[:controlnets]],
                        control_images=[image] * controlnets,
                    )
                )

            for seed in track(range(rounds + WARM_UP), "rounds"):
                for controlnets, adapters in CASES:
                    chosen = [files.make() for _ in range(adapters)]
                    timed(ours[controlnets, adapters], lambda c=controlnets, f=chosen, s=seed: ask(c, f, s))
                    timed(
                        theirs[controlnets, adapters], lambda c=controlnets, f=chosen, s=seed: diffusers.draw(c, f, s)
                    )
                    for file in chosen:
                        file.unlink()
    return _kept(ours), _kept(theirs)


def _kept(times: Times) -> Times:
    return {case: each[WARM_UP:] for case, each in times.items()}


def main(
    rounds: Annotated[int, typer.Option(min=2)] = 7,
    steps: Annotated[int, typer.Option(min=1)] = 20,
    rank: Annotated[int, typer.Option(min=1)] = 16,
    out: Annotated[Path, typer.Option(help="Result file.")] = ROOT / "benchmarks/results/controlnet_request.json",
) -> None:
    """Measure requests with ControlNets and LoRAs side by side with diffusers."""
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    machine = describe()
    ours, theirs = measure(rounds, steps, rank)

    def ratio(of: list[float], to: list[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(of, to, strict=True)), 3)

    cases = [
        {
            "controlnets": case[0],
            "cold_loras": case[1],
            "ours_ms": round(1000 * statistics.median(ours[case]), 1),
            "diffusers_ms": round(1000 * statistics.median(theirs[case]), 1),
            "ours_to_bare": ratio(ours[case], ours[0, 0]),
            "diffusers_to_bare": ratio(theirs[case], theirs[0, 0]),
            "diffusers_to_ours": ratio(theirs[case], ours[case]),
        }
        for case in CASES
    ]
    command = f"python benchmarks/controlnet_request.py --rounds {rounds} --steps {steps} --rank {rank}"
    written = {"command": command, "machine": machine, "threads": {"ours": "1 a process", "diffusers": threads}}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(written | {"cases": cases}, indent=2) + "\n", "utf-8")
    table = Table("ControlNets", "cold LoRAs", "ours, ms", "÷ bare", "diffusers, ms", "÷ bare", "diffusers ÷ ours")
    for case in cases:
        table.add_row(
            *(
                str(value)
                for value in (
                    case["controlnets"],
                    case["cold_loras"],
                    case["ours_ms"],
                    case["ours_to_bare"],
                    case["diffusers_ms"],
                    case["diffusers_to_bare"],
                    case["diffusers_to_ours"],
                )
            )
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
