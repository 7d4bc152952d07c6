"""What it takes to build engines of TensorRT-RTX, which needs no GPU: seconds, sizes, and most memory.

SDXL's UNet, a ControlNet and the VAE at their real sizes with random weights, and the demo family's networks. Every
engine is built in a process of its own, all for any size of picture that is said. Nothing runs them here.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import gpu_networks
import onnx_ir as ir
import torch
import typer
from machine import describe
from rich.console import Console

from swiftdiffusion.export.onnx.checkpoint_export import OnnxOptions, export_onnx
from swiftdiffusion.export.onnx.checkpoint_parts import decoder, halves, steered
from swiftdiffusion.export.onnx.function_bodies import INSTANCE, REDUCE
from swiftdiffusion.export.onnx.graph_part import GraphPart, Sizes
from swiftdiffusion.export.onnx.torch_graph import torch_graph
from swiftdiffusion.export.tensorrt.engines import CONSTANT, INPUTS, LINEAR, BuildSettings, EngineBuilder
from swiftdiffusion.export.tensorrt.profiles import parse_latents, parse_rows
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.tensorrt.flavours import TENSORRT_RTX
from swiftdiffusion.python_backends.tensorrt.tensor_names import DECODER, ENCODER, ENCODER_INPUTS, VAE_DECODER

ROOT = Path(__file__).resolve().parents[1]
CPU, MIB = torch.device("cpu"), 2**20
ROWS, ONE_SIZE, ANY_SIZE = "1:2:16", "128x128", "4x4:128x128:256x256"
VARIANTS: dict[str, dict[str, Any]] = {
    "one size, for 8.9": {"latents": ONE_SIZE, "capabilities": ("8.9",)},
    "one size": {"latents": ONE_SIZE},
    "any size": {"latents": ANY_SIZE},
    "any size, convolutions constant": {"latents": ANY_SIZE, "weights": LINEAR},
}
"""Of the UNet's halves; without more, for the capabilities that TensorRT-RTX chooses, with weights as inputs."""


def sdxl(directory: Path, real: bool) -> Iterator[tuple[str, float]]:
    """Writes SDXL's graphs; their names, with the seconds that each took."""
    side = 128 if real else 16
    sizes = Sizes(2, side, side, 4, dynamic=True)
    unet = gpu_networks.unet(real, CPU, torch.float16).requires_grad_(False).eval()
    given = dict(zip(ENCODER_INPUTS, gpu_networks.inputs(unet, 2), strict=True))
    inputs = {name: tensor for name, tensor in given.items() if tensor.numel()}
    inputs["latents"] = torch.zeros(2, 4, side, side, dtype=torch.float16)

    for norms in (REDUCE, INSTANCE):
        (directory / norms).mkdir()
    yield from written(directory, [decoder(gpu_networks.vae(real, CPU, torch.float32), sizes)], (REDUCE,))
    network = gpu_networks.controlnet(unet, CPU, torch.float16).requires_grad_(False).eval()
    yield from written(directory, steered("any", network, inputs, sizes, 8), (REDUCE,))
    del network
    yield from written(directory, halves(unet, inputs, sizes), (REDUCE, INSTANCE))


def written(directory: Path, parts: Iterable[GraphPart], forms: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Writes graphs into a subdirectory for each form of norms; their names, with the seconds that each took."""
    for part in parts:
        for norms in forms:
            start, file = time.perf_counter(), directory / norms / f"{part.name}.onnx"
            ir.save(torch_graph(part, norms), file, external_data=f"{file.name}.data")
            yield f"{norms}/{part.name}", time.perf_counter() - start


def _build(onnx: Path, engines: Path, name: str, latents: str, rows: str, options: dict[str, Any]) -> dict[str, Any]:
    settings = BuildSettings(onnx, engines, parse_rows(rows), parse_latents(latents), TENSORRT_RTX, **options)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    metadata = EngineBuilder(settings).build(name)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(cpu, 1),
        "plan_mib": round((engines / f"{name}.plan").stat().st_size / MIB, 1),
        "weights_from_outside": len(metadata.weights),
        "most_memory_mib": _most_memory_mib(),
    }


def _most_memory_mib() -> int:
    """Of this process; `ru_maxrss` has that of the one that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) // 1024


def built(onnx: Path, engines: Path, name: str, latents: str, rows: str = ROWS, **options: Any) -> dict[str, Any]:
    """Figures of one build."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        found = process.submit(_build, onnx, engines, name, latents, rows, options).result()
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    Console(stderr=True).print(name, latents, given, found)
    return {"network": name, "latents": latents, "rows": rows, **given, **found}


def of_sdxl(directory: Path, real: bool) -> dict[str, Any]:
    """Graphs and engines."""
    seconds = {name: round(taken, 1) for name, taken in sdxl(directory, real)}
    weights = {name: round((directory / f"{name}.onnx.data").stat().st_size / MIB, 1) for name in seconds}
    results = []
    for name in (ENCODER, DECODER):
        for variant in VARIANTS.values():
            options = dict(variant)
            results.append(built(directory / REDUCE, directory / "engines", name, options.pop("latents"), **options))
        norms = built(directory / INSTANCE, directory / "engines", name, ANY_SIZE)
        results.append({**norms, "norms": INSTANCE})
    results.append(built(directory / REDUCE, directory / "engines", ENCODER, ANY_SIZE, weights=CONSTANT))
    for name, rows in (("controlnet_any", ROWS), ("controlnet_any_embedder", ROWS), (VAE_DECODER, "1")):
        results.append(built(directory / REDUCE, directory / "engines", name, ANY_SIZE, rows))
    return {"export_seconds": seconds, "onnx_weights_mib": weights, "engines": results}


def of_demo(directory: Path) -> dict[str, Any]:
    """The same of the demo family."""
    start = time.perf_counter()
    controlnets = {"edges": ROOT / "export/demo/controlnets/edges"}
    names = export_onnx(
        Checkpoint(ROOT / "export/demo/weights"), directory / "onnx", OnnxOptions("float16", controlnets)
    )
    seconds = round(time.perf_counter() - start, 1)
    results = [
        built(directory / "onnx", directory / "engines", name, "4x4:16x16:64x64", capabilities=capabilities)
        for capabilities in ((), ("8.9",))
        for name in names
    ]
    return {"export_seconds": seconds, "engines": results}


def main(
    tiny: Annotated[bool, typer.Option("--tiny", help="SDXL's structure at a fifth of its width: a try.")] = False,
    out: Annotated[Path, typer.Option(help="Where the result goes.")] = ROOT / "benchmarks/results/engine_builds.json",
) -> None:
    """Builds everything, which takes a quarter of an hour, 14 GB of disk and 12 GB of memory."""
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/engine_builds.py", *sys.argv[1:]]),
        "machine": describe(),
        "tensorrt_rtx": version("tensorrt-rtx-cu13"),
        "inputs": INPUTS,
    }
    with tempfile.TemporaryDirectory(prefix="engine_builds-") as directory, torch.no_grad():
        for name, of in (("demo", of_demo), ("sdxl", lambda place: of_sdxl(place, not tiny))):
            (Path(directory) / name).mkdir()
            result[name] = of(Path(directory) / name)
            if not tiny:
                out.write_text(json.dumps(result) + "\n", "utf-8")
    Console().print_json(data=result)


if __name__ == "__main__":
    typer.run(main)
