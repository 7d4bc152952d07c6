"""One request through Triton ÷ the sum of its raw module calls, on the same threads.

Rounds alternate between a request to the server, the modules called directly (text encoders, UNet once per step on both
halves of guidance, VAE) and diffusers' pipeline, so that whatever else the machine does meets all three. Two settings:
one shard against one thread, and two shards against two threads. With two shards the modules are also called as the
server calls them: each half of guidance in a process of its own with one thread, both at once, everything else on one.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import DiffusionPipeline
from machine import describe
from rich.console import Console
from rich.table import Table

from swiftdiffusion.clients import Client, GenerationRequest
from swiftdiffusion.clients.perf.statistics import ModelWork, read_statistics
from swiftdiffusion.export.repository.serving_options import ServingOptions
from swiftdiffusion.export.repository.writing import write_repository
from swiftdiffusion.python_backends.launcher import TritonServer
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

WARM_UP = 2
"""Rounds that are not counted."""

ROOT = Path(__file__).resolve().parents[1]


class RawModules:
    """The modules of a checkpoint, called with inputs of the right shapes and nothing around them."""

    def __init__(self, checkpoint: Checkpoint, steps: int) -> None:
        cpu = torch.device("cpu")
        self._steps = steps
        self._unet = checkpoint.load_unet(cpu, torch.float32)
        self._vae = checkpoint.load_vae(cpu, torch.float32)
        self._text = checkpoint.load_text_pipeline(cpu, torch.float32)
        height, width = (side // checkpoint.vae_scale_factor for side in checkpoint.default_size)
        self._latents = torch.randn(1, checkpoint.latent_channels, height, width)
        self._embeddings = torch.randn(2, *checkpoint.text_embedding_shape)
        self._added = None
        if checkpoint.pooled_width is not None:
            self._added = {"text_embeds": torch.randn(2, checkpoint.pooled_width), "time_ids": torch.ones(2, 6)}

    def unet_step(self, step: int) -> None:
        """One UNet call on both halves of guidance."""
        both = self._latents.repeat(2, 1, 1, 1)
        self._unet(both, 999 - step, self._embeddings, added_cond_kwargs=self._added, return_dict=False)

    def half_step(self, step: int) -> None:
        """One UNet call on one half."""
        added = None if self._added is None else {name: tensor[:1] for name, tensor in self._added.items()}
        self._unet(self._latents, 999 - step, self._embeddings[:1], added_cond_kwargs=added, return_dict=False)

    @torch.inference_mode()
    def run(self, prompt: str, unet_step: Callable[[int], None]) -> dict[str, float]:
        """Seconds per kind of module."""
        seconds = {}
        start = time.perf_counter()
        for tokenizer, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
            module = getattr(self._text, encoder, None)
            if module is not None:
                ids = getattr(self._text, tokenizer)(
                    prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
                ).input_ids
                module(ids, output_hidden_states=True)
        seconds["text_encoder"] = time.perf_counter() - start
        start = time.perf_counter()
        for step in range(self._steps):
            unet_step(step)
        seconds["unet"] = time.perf_counter() - start
        start = time.perf_counter()
        self._vae.decode(self._latents, return_dict=False)
        seconds["vae"] = time.perf_counter() - start
        return seconds


class SplitModules:
    """Processes of one thread that each evaluate one half of guidance, as shards do; a context manager."""

    def __init__(self, checkpoint: Checkpoint, halves: int) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(halves)]
        self._connections = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_evaluate_half, args=(checkpoint.path, theirs)) for _, theirs in pipes
        ]

    def __enter__(self) -> SplitModules:
        for process in self._processes:
            process.start()
        self.unet_step(0)
        return self

    def unet_step(self, step: int) -> None:
        """One UNet call in every process, at once."""
        for connection in self._connections:
            connection.send(step)
        for connection in self._connections:
            connection.recv()

    def __exit__(self, *error: object) -> None:
        for connection, process in zip(self._connections, self._processes, strict=True):
            connection.send(None)
            process.join()


def _evaluate_half(path: Path, connection: Connection) -> None:
    torch.set_num_threads(1)
    modules = RawModules(Checkpoint(path), 1)
    with torch.inference_mode():
        while (step := connection.recv()) is not None:
            modules.half_step(step)
            connection.send(step)


def measure(checkpoint: Checkpoint, shards: int, steps: int, rounds: int, console: Console) -> dict[str, object]:
    """One setting: `shards` shards of one thread each against `shards` threads."""
    torch.set_num_threads(shards)
    options = ServingOptions(shards, (), 1, "float32", 8, steps, 5.0, max(checkpoint.default_size))
    modules = RawModules(checkpoint, steps)
    pipeline = DiffusionPipeline.from_pretrained(checkpoint.path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    times: dict[str, list[float]] = defaultdict(list)
    parts: list[dict[str, float]] = []
    reported: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as directory:
        write_repository(checkpoint, Path(directory) / "repository", options)
        with (
            TritonServer(Path(directory) / "repository") as server,
            Client(server.grpc_url) as client,
            SplitModules(checkpoint, shards) as split,
        ):
            for index in range(rounds + WARM_UP):
                if index == WARM_UP:
                    before = read_statistics(server.grpc_url)
                prompt = f"a red circle above a blue square {index}"  # new each time: no embedding is remembered
                request = GenerationRequest(prompt=prompt, seed=index)
                info = {}
                parts.append(modules.run(prompt, modules.unet_step))
                if shards > 1:
                    torch.set_num_threads(1)
                    times["modules_split"].append(sum(modules.run(prompt, split.unet_step).values()))
                    torch.set_num_threads(shards)
                seconds = {
                    "server": _timed(lambda r=request, i=info: i.update(client.generate(r).info.timings_ms)),
                    "modules": sum(parts[-1].values()),
                    "diffusers": _timed(
                        lambda p=prompt: pipeline(p, num_inference_steps=steps, guidance_scale=5.0, negative_prompt="")
                    ),
                }
                reported.append(info)
                console.print(index, {name: f"{1000 * value:.0f} ms" for name, value in seconds.items()})
                for name, value in seconds.items():
                    times[name].append(value)
            work = read_statistics(server.grpc_url).work_since(before)
    kept = {name: values[WARM_UP:] for name, values in times.items()}
    median = {name: statistics.median(values) for name, values in kept.items()}
    ratios = [server / raw for server, raw in zip(kept["server"], kept["modules"], strict=True)]
    return {
        "shards": shards,
        "threads": shards,
        "steps": steps,
        "rounds": rounds,
        "median_s": median,
        "server_over_modules": statistics.median(ratios),
        "server_over_modules_split": median["server"] / median["modules_split"] if shards > 1 else None,
        "server_over_modules_quartiles": statistics.quantiles(ratios, n=4),
        "server_over_diffusers": median["server"] / median["diffusers"],
        "modules_median_ms": {
            name: 1000 * statistics.median(part[name] for part in parts[WARM_UP:])
            for name in ("text_encoder", "unet", "vae")
        },
        "per_request_in_the_server": [_per_request(model, rounds) for model in work],
        "server_reported_median_ms": {
            name: statistics.median(part[name] for part in reported[WARM_UP:]) for name in reported[0]
        },
    }


def _per_request(model: ModelWork, requests: int) -> dict[str, object]:
    """Where a model's time goes, from Triton's counters: mean milliseconds of one request, all its calls together."""
    calls = model.calls / requests
    stages = {"queue_ms": model.queue_ms, "transfer_ms": model.transfer_ms, "compute_ms": model.compute_ms}
    return {"model": model.model, "calls": calls, **{name: round(calls * ms, 3) for name, ms in stages.items()}}


def main(
    checkpoint: Annotated[Path, typer.Option(help="A diffusers directory.")] = ROOT / "export/demo/weights",
    steps: Annotated[int, typer.Option(min=1)] = 20,
    rounds: Annotated[int, typer.Option(min=2)] = 15,
    shards: Annotated[list[int], typer.Option(help="Settings to measure.")] = [1, 2],  # noqa: B006  typer's default
    out: Annotated[Path, typer.Option(help="Result file.")] = ROOT / "benchmarks/results/overhead.json",
) -> None:
    """Measure what serving adds to the modules' own time."""
    console = Console(stderr=True)
    served = Checkpoint(checkpoint.resolve())
    machine = describe()
    settings = [measure(served, count, steps, rounds, console) for count in shards]
    command = f"python benchmarks/overhead.py --steps {steps} --rounds {rounds}"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"command": command, "machine": machine, "settings": settings}) + "\n", "utf-8")
    columns = ("server", "modules", "modules_split", "diffusers")
    table = Table("shards × threads", *columns, "server ÷ modules", "÷ modules_split", "÷ diffusers")
    for setting in settings:
        medians = setting["median_s"]
        table.add_row(
            f"{setting['shards']} × 1",
            *(f"{1000 * medians[name]:.0f} ms" if name in medians else "" for name in columns),  # type: ignore[index]
            f"{setting['server_over_modules']:.3f}",
            f"{split:.3f}" if (split := setting["server_over_modules_split"]) else "",
            f"{setting['server_over_diffusers']:.3f}",
        )
    Console().print(table)
    console.print(f"written to {out}")


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
