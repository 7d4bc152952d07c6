"""Putting LoRAs on a UNet: ours against diffusers' load and fuse, and PEFT's hotswap, in one process and run.

Three settings: the demo family's UNet; one with SDXL's real list of modules at a fifth of its width, so that the count
of modules (722 with a LoRA) is real and its arithmetic is not; the same with LoRAs of mixed ranks. Rounds alternate
between the sides, so that whatever else the machine does meets all of them.

What is timed, from a file in the page cache to weights that compute with it:
  cold      a file never seen before. Ours: read, check, canonicalise, write to shared memory, map, patch.
            diffusers: load_lora_adapter (PEFT's injection) and fuse_lora; PEFT hotswap: has no cold load of its own.
  swap      from LoRA A to LoRA B, both known. Ours: from shared memory. diffusers: unfuse, delete, load, fuse, from
            tensors in memory. PEFT hotswap: factors of the same shapes exchanged in place, not fused: every later UNet
            call pays for them.
  swap of two  from A + B to C + D.
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
from lora_workloads import Files, sdxl_modules
from machine import describe
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import load_file

from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.lora_set import make_set
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.lora.patching.resident import ResidentLoras
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[1]


class Ours:
    """The shard's way."""

    def __init__(self, checkpoint: Checkpoint, directory: Path) -> None:
        unet = checkpoint.load_unet(torch.device("cpu"), torch.float32)
        self._canonicalise, self._directory = Canonicaliser(checkpoint), directory
        self._resident = ResidentLoras(Patcher({"unet": unet}), directory)

    def load(self, file: Path) -> Path:
        """The canonical file of a LoRA."""
        target = self._directory / f"{file.stem.encode().hex():0>16}.safetensors"
        self._canonicalise(file, target)
        return target

    def put_on(self, *files: Path) -> None:
        """Makes a set resident."""
        self._resident.ensure(make_set((file, 1.0) for file in files))


class Diffusers:
    """diffusers' documented way: load, fuse; unfuse, delete."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._unet: Any = checkpoint.load_unet(torch.device("cpu"), torch.float32)
        self._names: list[str] = []

    def put_on(self, *states: dict[str, torch.Tensor]) -> None:
        """Replaces what is fused."""
        if self._names:
            self._unet.unfuse_lora()
            self._unet.delete_adapters(self._names)
        self._names = [f"lora{number}" for number in range(len(states))]
        for name, state in zip(self._names, states, strict=True):
            self._unet.load_lora_adapter(state, prefix="unet", adapter_name=name)
        self._unet.set_adapters(self._names)
        self._unet.fuse_lora(adapter_names=self._names)


class Hotswap:
    """PEFT's hotswap: the factors of injected, unfused layers are exchanged."""

    def __init__(self, checkpoint: Checkpoint, first: dict[str, torch.Tensor]) -> None:
        self._unet: Any = checkpoint.load_unet(torch.device("cpu"), torch.float32)
        self._unet.load_lora_adapter(first, prefix="unet", adapter_name="lora")

    def put_on(self, state: dict[str, torch.Tensor]) -> None:
        """Exchanges the factors."""
        self._unet.load_lora_adapter(state, prefix="unet", adapter_name="lora", hotswap=True)


def measure(name: str, checkpoint: Checkpoint, ranks: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """One UNet."""
    times: dict[str, list[float]] = defaultdict(list)

    def timed(what: str, call: Callable[[], object]) -> None:
        start = time.perf_counter()
        call()
        times[what].append(1000 * (time.perf_counter() - start))

    with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory(dir="/dev/shm") as shared:
        files = Files(Path(temporary), checkpoint.load_unet(torch.device("cpu"), torch.float32), ranks)
        ours, theirs = Ours(checkpoint, Path(shared)), Diffusers(checkpoint)
        known = [files.make() for _ in range(4)]
        canonical, states = [ours.load(file) for file in known], [load_file(file) for file in known]
        hotswap = Hotswap(checkpoint, states[0]) if len(set(ranks)) == 1 else None
        for number in track(range(rounds), name):
            new = files.make()
            new.read_bytes()  # into the page cache, for all sides
            timed("cold.ours", lambda new=new: ours.put_on(ours.load(new)))
            timed("cold.diffusers", lambda new=new: theirs.put_on(load_file(new)))
            for one in (number % 2, 1 - number % 2):
                timed("swap.ours", lambda one=one: ours.put_on(canonical[one]))
                timed("swap.diffusers", lambda one=one: theirs.put_on(states[one]))
                if hotswap is not None:
                    timed("swap.peft_hotswap", lambda one=one: hotswap.put_on(states[one]))
            for a, b in ((0, 1), (2, 3)):
                timed("swap_of_two.ours", lambda a=a, b=b: ours.put_on(canonical[a], canonical[b]))
                timed("swap_of_two.diffusers", lambda a=a, b=b: theirs.put_on(states[a], states[b]))
            new.unlink()
        size = known[0].stat().st_size
    median = {what: round(statistics.median(values), 3) for what, values in times.items()}
    return {
        "unet": name,
        "rounds": rounds,
        "modules": files.modules,
        "ranks": ranks,
        "file_mib": round(size / 2**20, 2),
        "median_ms": median,
        "quartiles_ms": {what: [round(q, 3) for q in statistics.quantiles(v, n=4)] for what, v in times.items()},
        "diffusers_over_ours": {
            what: round(median[f"{what}.diffusers"] / median[f"{what}.ours"], 1)
            for what in ("cold", "swap", "swap_of_two")
        },
    }


def main(
    rounds: Annotated[int, typer.Option(min=2)] = 15,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    out: Annotated[Path, typer.Option(help="Result file.")] = ROOT / "benchmarks/results/lora_swap.json",
) -> None:
    """Measure LoRA loads and swaps side by side with diffusers."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    machine = describe()
    with tempfile.TemporaryDirectory() as directory:
        large = sdxl_modules(Path(directory))
        settings = [
            measure("demo family, rank 8", Checkpoint(ROOT / "export/demo/weights"), (8,), rounds),
            measure("SDXL's modules at 1/5 width, rank 32", large, (32,), max(2, rounds // 2)),
            measure("SDXL's modules at 1/5 width, ranks 4 to 32", large, (4, 8, 16, 32), max(2, rounds // 7)),
        ]
    command = f"python benchmarks/lora_swap.py --rounds {rounds} --threads {threads}"
    result = {"command": command, "machine": machine, "threads": threads, "settings": settings}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result) + "\n", "utf-8")
    table = Table("UNet", "modules", "", "ours", "diffusers", "PEFT hotswap", "diffusers ÷ ours")
    for setting in settings:
        for what, ratio in setting["diffusers_over_ours"].items():
            cells = [setting["median_ms"].get(f"{what}.{side}") for side in ("ours", "diffusers", "peft_hotswap")]
            shown = ["" if cell is None else f"{cell:.1f} ms" for cell in cells]
            table.add_row(setting["unet"], str(setting["modules"]), what.replace("_", " "), *shown, f"{ratio:.0f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
