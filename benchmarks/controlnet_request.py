"""Requests with 0, 1 and 2 ControlNets and 0, 1 and 2 LoRAs that the server has never seen, beside diffusers.

Rounds alternate between all ways of asking, so that whatever else the machine does meets all of them. ControlNets have
the demo UNet's encoder and random weights: what they draw does not matter here, what they take does.

  one shard, two shards   each shard and each ControlNet a process of one thread; LoRAs at bound 0
  diffusers               its ControlNet pipeline with as many threads as there are cores; LoRAs by load_lora_weights
                          and fuse_lora, then unfused and unloaded, which counts too

A profile of the modules by themselves, one thread, says what two shards could save at best.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
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
from swiftdiffusion.export.repository.serving_options import ServedControlNet, ServingOptions
from swiftdiffusion.export.repository.writing import write_repository
from swiftdiffusion.python_backends.controlnets.network import ControlNet as BackendControlNet
from swiftdiffusion.python_backends.launcher import TritonServer
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.unet import UNet, example
from swiftdiffusion.python_backends.request.completed import ControlNetUse

WARM_UP = 2
PROMPT = "a red circle above a blue square on a white background"
CASES = tuple(product((0, 1, 2), (0, 1, 2)))
"""Numbers of ControlNets and of cold LoRAs."""

SHARDS = (1, 2)

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


@dataclass
class Measured:
    """Seconds of every case, per round.

    Attributes:
        ours: Number of shards → case → seconds.
        diffusers: Case → seconds.
        profile: Milliseconds of modules by themselves.
    """

    ours: dict[int, Times]
    diffusers: Times
    profile: dict[str, float]


def measure(rounds: int, steps: int, rank: int) -> Measured:
    """Runs everything."""
    measured = Measured({shards: defaultdict(list) for shards in SHARDS}, defaultdict(list), {})
    checkpoint = Checkpoint(ROOT / "export/demo/weights")
    unet = checkpoint.load_unet(torch.device("cpu"), torch.float32)
    height, width = checkpoint.default_size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)

    def timed(times: list[float], call: Callable[[], Any]) -> None:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)

    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loras = directory / "loras"
        loras.mkdir()
        files = Files(loras, unet, (rank,))
        networks = [directory / name for name in ("first", "second")]
        for path in networks:
            ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 96, 256)).save_pretrained(path)
        measured.profile = profile(checkpoint, networks[0], image)
        served = tuple(ServedControlNet(path.name, path) for path in networks)
        clients = {}
        for shards in SHARDS:
            options = ServingOptions(
                shards, (), 1, "float32", 8, steps, 2.0, max(height, width), loras=loras, controlnets=served
            )
            write_repository(checkpoint, directory / f"repository{shards}", options)
            server = stack.enter_context(TritonServer(directory / f"repository{shards}"))
            clients[shards] = stack.enter_context(Client(server.grpc_url))
        diffusers = Diffusers(checkpoint, networks, image, steps)

        def ask(shards: int, controlnets: int, chosen: list[Path], seed: int) -> None:
            clients[shards].generate(
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
            for case in CASES:
                controlnets, adapters = case
                for shards in SHARDS:
                    chosen = [files.make() for _ in range(adapters)]
                    timed(measured.ours[shards][case], partial(ask, shards, controlnets, chosen, seed))
                timed(measured.diffusers[case], partial(diffusers.draw, controlnets, chosen, seed))
                for file in loras.glob("*.safetensors"):
                    file.unlink()
    for times in (*measured.ours.values(), measured.diffusers):
        for case in CASES:
            del times[case][:WARM_UP]
    return measured


def profile(checkpoint: Checkpoint, network: Path, image: np.ndarray) -> dict[str, float]:
    """Median milliseconds of one call of each module, one thread, nothing else running."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    unet = UNet(checkpoint, device, torch.float32)
    net = BackendControlNet(network, checkpoint, device, torch.float32, lambda _: image)
    use = ControlNetUse(network.name, ("a" * 64,), 1.0, 0.0, 1.0, False)
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(20):
        for rows in (1, 2):
            tensors = example(checkpoint, rows)
            start = time.perf_counter()
            encoded = unet.encode(tensors)
            middle = time.perf_counter()
            unet.decode(encoded)
            end = time.perf_counter()
            net(tensors, [use] * rows)
            times[f"unet_encoder_{rows}"].append(middle - start)
            times[f"unet_decoder_{rows}"].append(end - middle)
            times[f"unet_{rows}"].append(end - start)
            times[f"controlnet_{rows}"].append(time.perf_counter() - end)
    torch.set_num_threads(before)
    return {name: round(1000 * statistics.median(each), 2) for name, each in times.items()}


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
    measured = measure(rounds, steps, rank)
    one, two = (measured.ours[shards] for shards in SHARDS)
    theirs = measured.diffusers

    def ms(times: list[float]) -> float:
        return round(1000 * statistics.median(times), 1)

    def ratio(of: list[float], to: list[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(of, to, strict=True)), 3)

    cases = [
        {
            "controlnets": case[0],
            "cold_loras": case[1],
            "one_shard_ms": ms(one[case]),
            "one_shard_to_bare": ratio(one[case], one[0, 0]),
            "two_shards_ms": ms(two[case]),
            "two_shards_to_one": ratio(two[case], one[case]),
            "diffusers_ms": ms(theirs[case]),
            "diffusers_to_bare": ratio(theirs[case], theirs[0, 0]),
            "diffusers_to_one_shard": ratio(theirs[case], one[case]),
            "diffusers_to_two_shards": ratio(theirs[case], two[case]),
        }
        for case in CASES
    ]
    ideal = {"two_shards_to_one": round(measured.profile["unet_1"] / measured.profile["unet_2"], 3)}
    command = f"python benchmarks/controlnet_request.py --rounds {rounds} --steps {steps} --rank {rank}"
    written = {
        "command": command,
        "machine": machine,
        "threads": {"ours": "1 a process", "diffusers": threads},
        "profile_ms": measured.profile,
        "ideal_of_the_denoising_alone": ideal,
        "cases": cases,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(written) + "\n", "utf-8")
    table = Table(*(name.replace("_", " ") for name in cases[0]))
    for case in cases:
        table.add_row(*map(str, case.values()))
    console = Console(width=200)
    console.print(table)
    console.print(f"modules alone, ms: {measured.profile}; of the denoising alone at best: {ideal}")


if __name__ == "__main__":
    typer.run(main)
