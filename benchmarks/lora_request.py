"""A request with two LoRAs that the server has never seen ÷ the bare request, and the same for diffusers.

Rounds alternate between all ways of asking, so that whatever else the machine does meets all of them. A cold request
names two files that are new (their content too); they lie in the page cache, for the server and for diffusers.

  bare        no LoRA
  hot         two LoRAs that were used in the round before last
  exact       two cold LoRAs, bound 0: the request waits for them before its first step
  bounded     two cold LoRAs, a bound: they load while the first steps run
  diffusers   load_lora_weights of two files, fuse, denoise; then unfuse and unload, which counts too

One shard has one thread, and so has diffusers; what is left of the machine loads LoRAs.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import DiffusionPipeline
from lora_workloads import ROOT, Files, sdxl_modules
from machine import describe
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swiftdiffusion.clients import Client, GenerationRequest, Lora
from swiftdiffusion.export.repository.serving_options import ServingOptions
from swiftdiffusion.export.repository.writing import write_repository
from swiftdiffusion.python_backends.launcher import TritonServer
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

WARM_UP = 2
PROMPT = "a red circle above a blue square on a white background"


class Diffusers:
    """The pipeline as its documentation puts LoRAs on it."""

    def __init__(self, checkpoint: Checkpoint, steps: int) -> None:
        self._pipeline: Any = DiffusionPipeline.from_pretrained(checkpoint.path, dtype=torch.float32)
        self._pipeline.set_progress_bar_config(disable=True)
        self._steps = steps

    def bare(self, seed: int) -> None:
        """A picture."""
        generator = torch.Generator("cpu").manual_seed(seed)
        self._pipeline(PROMPT, num_inference_steps=self._steps, guidance_scale=2.0, generator=generator)

    def with_loras(self, files: list[Path], seed: int) -> None:
        """A picture with LoRAs, and the pipeline as it was."""
        names = [file.stem for file in files]
        for file, name in zip(files, names, strict=True):
            self._pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
        self._pipeline.set_adapters(names)
        self._pipeline.fuse_lora(adapter_names=names)
        self.bare(seed)
        self._pipeline.unfuse_lora()
        self._pipeline.unload_lora_weights()


def measure(name: str, checkpoint: Checkpoint, rank: int, steps: int, bound: int, rounds: int) -> dict[str, Any]:
    """One checkpoint."""
    times: dict[str, list[float]] = defaultdict(list)
    reports: dict[str, list[Any]] = defaultdict(list)

    def timed(what: str, call: Callable[[], Any]) -> None:
        start = time.perf_counter()
        result = call()
        times[what].append(time.perf_counter() - start)
        if result is not None:
            reports[what] += result.info.loras

    with tempfile.TemporaryDirectory() as temporary:
        loras = Path(temporary) / "loras"
        loras.mkdir()
        files = Files(loras, checkpoint.load_unet(torch.device("cpu"), torch.float32), (rank,))
        options = ServingOptions(
            1, (), 1, "float32", 8, steps, 2.0, max(checkpoint.default_size), loras=loras, lora_host_bytes=2**30
        )
        write_repository(checkpoint, Path(temporary) / "repository", options)
        theirs = Diffusers(checkpoint, steps)
        with TritonServer(Path(temporary) / "repository") as server, Client(server.grpc_url) as client:

            def ask(seed: int, chosen: list[Path], bound: int | None = None) -> Any:
                entries = tuple(Lora(file.stem, 0.5) for file in chosen)
                return client.generate(GenerationRequest(PROMPT, seed=seed, loras=entries, lora_bound=bound))

            hot = [files.make() for _ in range(4)]
            for number in track(range(rounds + WARM_UP), name):
                exact, bounded = ([files.make(), files.make()] for _ in range(2))
                for file in (*exact, *bounded):
                    file.read_bytes()
                pair = hot[:2] if number % 2 else hot[2:]
                timed("bare", lambda n=number: ask(n, []))
                timed("hot", lambda n=number, pair=pair: ask(n, pair, 0))
                timed("bare again", lambda n=number: ask(n, []))
                timed("exact", lambda n=number, files=exact: ask(n, files, 0))
                timed("bounded", lambda n=number, files=bounded: ask(n, files, bound))
                timed("diffusers bare", lambda n=number: theirs.bare(n))
                timed("diffusers", lambda n=number, files=exact: theirs.with_loras(files, n))
                for file in (*exact, *bounded):
                    file.unlink()
    kept = {what: values[WARM_UP:] for what, values in times.items()}

    def ratio(what: str, to: str) -> dict[str, Any]:
        ratios = [a / b for a, b in zip(kept[what], kept[to], strict=True)]
        quartiles = [round(q, 3) for q in statistics.quantiles(ratios, n=4)]
        return {"median": round(statistics.median(ratios), 3), "quartiles": quartiles}

    return {
        "checkpoint": name,
        "modules": files.modules,
        "rank": rank,
        "steps": steps,
        "bound": bound,
        "median_ms": {what: round(1000 * statistics.median(values), 1) for what, values in kept.items()},
        "ratio_to_bare": {
            **{what: ratio(what, "bare") for what in ("bare again", "hot", "exact", "bounded")},
            "diffusers": ratio("diffusers", "diffusers bare"),
        },
        "reported_median": {
            what: {
                field: round(statistics.median(getattr(lora, field) for lora in reported[2 * WARM_UP :]), 2)
                for field in ("load_ms", "patch_ms", "patched_at_step")
            }
            for what, reported in reports.items()
            if reported
        },
    }


def main(
    rounds: Annotated[int, typer.Option(min=2)] = 15,
    steps: Annotated[int, typer.Option(min=1)] = 20,
    bound: Annotated[int, typer.Option(min=0)] = 4,
    out: Annotated[Path, typer.Option(help="Result file.")] = ROOT / "benchmarks/results/lora_request.json",
) -> None:
    """Measure requests with LoRAs side by side with diffusers."""
    torch.set_num_threads(1)
    machine = describe()
    with tempfile.TemporaryDirectory() as directory:
        large = sdxl_modules(Path(directory))
        settings = [
            measure("demo family", Checkpoint(ROOT / "export/demo/weights"), 16, steps, bound, rounds),
            measure("SDXL's modules at 1/5 width", large, 16, steps, bound, max(2, rounds // 3)),
        ]
    command = f"python benchmarks/lora_request.py --rounds {rounds} --steps {steps} --bound {bound}"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"command": command, "machine": machine, "settings": settings}) + "\n", "utf-8")
    table = Table("checkpoint", "two LoRAs", "ms", "÷ bare", "quartiles")
    for setting in settings:
        table.add_row(setting["checkpoint"], "none", f"{setting['median_ms']['bare']:.0f}")
        for what, ratio in setting["ratio_to_bare"].items():
            low, _, high = ratio["quartiles"]
            table.add_row("", what, f"{setting['median_ms'][what]:.0f}", f"{ratio['median']:.2f}", f"{low} … {high}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
