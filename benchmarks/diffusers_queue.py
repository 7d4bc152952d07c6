"""A trace against diffusers' pipelines behind a queue, one request at a time, in one process.

What `swiftdiffusion replay` measures of the server, measured of a service without one: pipelines stay loaded, LoRAs
are loaded for each request and unloaded after it as diffusers' documentation says, and requests wait for their turn.
Give both the same trace, LoRAs, ControlNets and `--slo-ms`, and as many threads here as the server has in all.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from machine import describe
from PIL import Image
from rich.console import Console

from swiftdiffusion.clients import RequestTimeout
from swiftdiffusion.clients.load.outcomes import Outcome
from swiftdiffusion.clients.load.plot import plot
from swiftdiffusion.clients.load.replay_command import slo_seconds, with_progress
from swiftdiffusion.clients.load.report import show, summarise
from swiftdiffusion.clients.load.served import places
from swiftdiffusion.clients.load.trace import Trace, TracedRequest, read_trace
from swiftdiffusion.python_backends.common.library_messages import silence_libraries

ROOT = Path(__file__).resolve().parents[1]


class Pipelines:
    """diffusers' pipelines of a checkpoint, with each set of ControlNets that was asked for."""

    def __init__(self, checkpoint: Path, loras: list[Path], controlnets: list[tuple[Path, Path]], guidance: float):
        base: Any = DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
        xl = isinstance(base, StableDiffusionXLPipeline)
        self._controlled: Any = StableDiffusionXLControlNetPipeline if xl else StableDiffusionControlNetPipeline
        self._networks = [ControlNetModel.from_pretrained(path, dtype=torch.float32) for path, _ in controlnets]
        self._images = [Image.open(image).convert("RGB") for _, image in controlnets]
        self._pipelines: dict[tuple[int, ...], Any] = {(): base}
        self._loras, self._guidance = loras, guidance

    def draw(self, request: TracedRequest) -> None:
        """A picture, and the pipeline as it was."""
        used = tuple(places(request.controlnets, len(self._networks)))
        pipeline = self._pipeline(used)
        files = [self._loras[place] for place in places([lora.rank for lora in request.loras], len(self._loras))]
        names = [file.stem.replace(".", "_") for file in files]  # a dot means a submodule to PEFT
        for file, name in zip(files, names, strict=True):
            pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
        if names:
            pipeline.set_adapters(names, [lora.scale for lora in request.loras[: len(names)]])
        controls = {"image": [self._images[place] for place in used]} if used else {}
        pipeline(
            request.prompt,
            num_inference_steps=request.steps or 20,
            guidance_scale=self._guidance,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            **controls,
        )
        if names:
            pipeline.unload_lora_weights()

    def _pipeline(self, used: tuple[int, ...]) -> Any:
        if used not in self._pipelines:
            networks = [self._networks[place] for place in used]
            self._pipelines[used] = self._controlled.from_pipe(self._pipelines[()], controlnet=networks)
        self._pipelines[used].set_progress_bar_config(disable=True)
        return self._pipelines[used]


async def run(
    trace: Trace,
    pipelines: Pipelines,
    threads: int,
    rate_scale: float,
    slo: tuple[float | None, float | None],
    timeout_ms: int | None,
) -> tuple[list[Outcome], float]:
    """The replay's outcomes and the SLO in seconds."""
    with ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(threads)) as turn:

        async def send(request: TracedRequest) -> None:
            try:
                async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1000):
                    await asyncio.get_running_loop().run_in_executor(turn, pipelines.draw, request)
            except TimeoutError as error:  # one that waits leaves the queue, one that is drawn ends there
                raise RequestTimeout(f"no picture within {timeout_ms} ms") from error

        seconds = await slo_seconds(trace, send, *slo)
        return await with_progress(trace, send, rate_scale, Console(stderr=True)), seconds


def main(
    trace: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="File of `swiftdiffusion trace`.")],
    checkpoint: Annotated[Path, typer.Option(help="In diffusers' format.")] = ROOT / "export/demo/weights",
    loras: Annotated[Path | None, typer.Option(help="Directory of LoRA files; else without.")] = None,
    controlnet: Annotated[list[str] | None, typer.Option(metavar="DIRECTORY=IMAGE", help="Repeatable.")] = None,
    rate_scale: Annotated[float, typer.Option(help="Requests arrive so many times as fast.")] = 1.0,
    slo_ms: Annotated[float | None, typer.Option(help="The latency that a picture may have.")] = None,
    slo_factor: Annotated[float | None, typer.Option(help="The same, times that of requests alone.")] = None,
    timeout_ms: Annotated[int | None, typer.Option(min=1, help="When requests give up.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one per core.")] = None,
    guidance_scale: Annotated[float, typer.Option(help="Of all requests.")] = 2.0,
    out: Annotated[Path, typer.Option(help="Result file.")] = Path("out/diffusers_queue.json"),
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw latencies there.")] = None,
) -> None:
    """Replay a trace on diffusers' pipelines and report as `swiftdiffusion replay` does."""
    silence_libraries()
    warnings.filterwarnings("ignore", module="peft")  # of LoRAs: what is odd about each file, at each load
    threads = threads or len(os.sched_getaffinity(0))
    machine, read = describe(), read_trace(trace)
    files = [] if loras is None else sorted(loras.glob("*.safetensors"))
    networks = [(Path(directory), Path(image)) for directory, _, image in (t.partition("=") for t in controlnet or ())]
    pipelines = Pipelines(checkpoint, files, networks, guidance_scale)
    outcomes, slo = asyncio.run(run(read, pipelines, threads, rate_scale, (slo_ms, slo_factor), timeout_ms))
    report = summarise(outcomes, slo)
    written = {
        "command": shlex.join(["python", "benchmarks/diffusers_queue.py", *sys.argv[1:]]),
        "machine": machine,
        "threads": threads,
        "trace": {"digest": read.digest, **read.arguments},
        "rate_scale": rate_scale,
        "adapters": {"loras": len(files), "controlnets": [path.name for path, _ in networks]},
        "report": report.as_json(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(written) + "\n", "utf-8")
    show(Console(), report, f"{trace.name} × {rate_scale:g}, diffusers with {threads} threads")
    if plot_file is not None:
        plot(outcomes, slo, plot_file, f"{trace.name} × {rate_scale:g}, diffusers")


if __name__ == "__main__":
    typer.run(main)
