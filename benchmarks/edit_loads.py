"""What planning loads is worth where entries come slowly: steps of one guided mask-aware request, wall clock.

SDXL's structure at 1/5 width. Entries lie in a tier that reads so slowly that all of a step's take `--times` of what a
step takes that computes all. Beside each other in one run, in turns: all computed; all loaded before the step; all
loaded while the step before is computed; of these what the paper's greedy algorithm, and what our planner chooses.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from lora_workloads import ROOT, sdxl_modules
from machine import describe
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swiftdiffusion.python_backends.engine.call_costs import CallCosts
from swiftdiffusion.python_backends.engine.entry_loads import EntryLoads
from swiftdiffusion.python_backends.engine.load_plans import LoadPlans
from swiftdiffusion.python_backends.engine.template_lines import TemplateLine
from swiftdiffusion.python_backends.engine.template_store import TemplateStore, Track
from swiftdiffusion.python_backends.engine.token_calls import token_call
from swiftdiffusion.python_backends.engine.token_memory import TokenMemory
from swiftdiffusion.python_backends.engine.token_plan import Plan, StackCost, greedy, plan
from swiftdiffusion.python_backends.engine.token_rows import TokenRow
from swiftdiffusion.python_backends.engine.token_runs import TokenRun
from swiftdiffusion.python_backends.networks.token_codes import Codes
from swiftdiffusion.python_backends.networks.token_masks import token_mask
from swiftdiffusion.python_backends.networks.token_stacks import MaskedRows
from swiftdiffusion.python_backends.networks.unet import UNet, example
from swiftdiffusion.python_backends.request.mask_aware import MaskAware
from swiftdiffusion.python_backends.shared_memory.host_cache import HostCache

SIDE, HALVES, AREA, STEPS = 64, 2, 0.2, 6
CPU = torch.device("cpu")
OUT = ROOT / "benchmarks/results/edit_loads.json"


def everything(stacks: Sequence[StackCost], _lead: float) -> Plan:
    """All stacks load."""
    return Plan((True,) * len(stacks), 0.0, 0.0)


class Throttled:
    """Reads so many bytes a second."""

    def __init__(self) -> None:
        self.pace = math.inf

    def __call__(self, codes: Codes) -> Codes:
        """A block, after the time that it takes."""
        time.sleep(codes.nbytes / self.pace)
        return Codes(codes.values.clone(), codes.scales.clone())


class Request:
    """The calls of one guided request, whose entries are all in a tier of their own."""

    def __init__(self, directory: Path) -> None:
        checkpoint = sdxl_modules(directory)
        self.unet = UNet(checkpoint, CPU, torch.float32)
        assert self.unet.stacks is not None and self.unet.token_costs is not None
        self.stacks, tokens = self.unet.stacks, self.unet.token_costs
        self._tensors = example(checkpoint, HALVES)
        self._tensors["LATENTS"] = torch.randn(HALVES, checkpoint.unet_channels, SIDE, SIDE)
        self._tensors["TIMESTEPS"].fill_(500)
        mask, edge = torch.zeros(SIDE, SIDE), round(SIDE * math.sqrt(AREA))
        mask[:edge, :edge] = 1
        self.mask = token_mask(mask, 1 + max(self.stacks.levels))
        sides = self.mask.sides
        counts = [sides[level][0] * sides[level][1] for level in self.stacks.levels]
        self.shapes = list(zip(counts, self.stacks.widths, strict=True))
        disk = HostCache(directory / "disk", 2**31, wait_s=0.0)
        self.store = TemplateStore((HostCache(directory / "memory", 2**20, wait_s=0.0), disk))
        with self.stacks.recorded([0, 1]) as values:
            self.step(())
        self.files = []
        for half in range(HALVES):
            name = f"{half:032x}-{0:016x}-{0:016x}-0"
            self.store.write(name, [each[half] for each in values], mask)
            found = disk.find(name)
            assert found is not None
            self.files.append(found)
        self.nbytes = HALVES * sum(tokens * (width + 4) for tokens, width in self.shapes)
        self.throttled = Throttled()
        self.loads = EntryLoads(self.store, CPU, 0, self.throttled)
        self.calls = CallCosts(tokens.convolutions)
        whole, left = (tokens.row(SIDE, SIDE, sizes) for sizes in (None, self.mask.sizes))
        self.features = {"whole": whole + whole, "masked": left + left}

    def step(self, rows: Sequence[TokenRow], plans: LoadPlans | None = None) -> None:
        """One call; with no rows all is computed."""
        if not rows:
            self.unet.decode(self.unet.encode(self._tensors, "the same", traced=False))
            return
        with token_call(self.stacks, rows, plans):
            self.unet.decode(self.unet.encode(self._tensors, "the same", traced=False))

    def run(self, plans: LoadPlans, wait: bool) -> tuple[float, float]:
        """Seconds of a step in the middle of a run, and of these what it waited for blocks.

        Args:
            plans: What comes.
            wait: Whether a step begins when all of it is there.
        """
        run = TokenRun(self.mask, MaskAware("template", ()), STEPS, TokenMemory(2**32), self.stacks.levels)
        tracks = [Track("", "", {0.0: file}) for file in self.files]
        lines = [TemplateLine(each, [0.0] * STEPS, 1.0, self.shapes, self.loads, same_prompt=True) for each in tracks]
        seconds, waited = [], []
        for step in range(STEPS):
            started = time.perf_counter()
            entries = [line._entry(step) for line in lines]
            if wait:
                for entry in entries:
                    assert entry is not None
                    for number in entry.numbers:
                        entry.block(number)
            rows = [TokenRow(run, half, step, line, self.mask) for half, line in enumerate(lines)]
            if wait:
                self._masked(rows)
            else:
                self.step(rows, plans)
            seconds.append(time.perf_counter() - started)
            waited.append(sum(entry.waited_s for entry in entries if entry is not None))
        return statistics.median(seconds[1:]), statistics.median(waited[1:])

    def _masked(self, rows: Sequence[TokenRow]) -> None:
        places = {side: torch.stack([each] * HALVES) for side, each in self.mask.places.items()}

        def known(number: int, empty: torch.Tensor) -> torch.Tensor:
            for row, out in zip(rows, empty, strict=True):
                row.known(number, out)
            return empty

        with self.stacks.masked([MaskedRows(slice(0, HALVES), places, known)]):
            self.unet.decode(self.unet.encode(self._tensors, "the same", traced=False))


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Of every way.")] = 5,
    times: Annotated[
        str, typer.Option(help="Loading a step's entries, in times of a step that computes all.")
    ] = "0.3,0.7,1.2,2.5",
    out: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = OUT,
) -> None:
    """Measure steps beside a throttled tier."""
    torch.set_num_threads(1)
    machine, results = describe(), []
    with tempfile.TemporaryDirectory() as directory, torch.inference_mode():
        request = Request(Path(directory))
        ways: dict[str, Callable[[Sequence[StackCost], float], Plan]] = {
            "loaded, then computed": everything,
            "all loaded": everything,
            "greedy": greedy,
            "planned": plan,
        }
        for share in map(float, times.split(",")):
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in ("all computed", *ways)}
            for _ in track(range(rounds), f"{share:g} of a step"):
                request.throttled.pace = math.inf
                whole_s = _seconds(lambda: request.step(()))
                request.calls.note(request.features["whole"], whole_s)
                found["all computed"].append((whole_s, 0.0))
                request.throttled.pace = request.nbytes / (share * whole_s)
                request.loads._pace.clear()
                for way, planner in ways.items():
                    plans = LoadPlans(request.unet.token_costs, request.calls, request.stacks.blocks, planner)  # type: ignore[arg-type]
                    found[way].append(request.run(plans, wait=way == "loaded, then computed"))
                request.calls.note(request.features["masked"], min(each[-1][0] for each in found.values()))
            results.append({"loading_in_steps": share, "ways": {way: _figures(each) for way, each in found.items()}})
    command = f"python benchmarks/edit_loads.py --rounds {rounds} --times {times}"
    out.write_text(json.dumps({"command": command, "machine": machine, "settings": results}) + "\n", "utf-8")
    table = Table("loading, in steps", *results[0]["ways"], title="ms of a step (of these waiting)")
    for each in results:
        cells = [f"{way['median_ms']:.0f} ({way['waited_ms']:.0f})" for way in each["ways"].values()]
        table.add_row(f"{each['loading_in_steps']:g}", *cells)
    Console().print(table)


def _seconds(do: Callable[[], None]) -> float:
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def _figures(found: Sequence[tuple[float, float]]) -> dict[str, Any]:
    medians = [statistics.median(each) for each in zip(*found, strict=True)]
    return {"median_ms": round(1000 * medians[0], 1), "waited_ms": round(1000 * medians[1], 1)}


if __name__ == "__main__":
    typer.run(main)
