"""What a step of a mask-aware run takes, beside one that computes all: SDXL's structure at 1/5 width, and the demo's.

Beside it the same where keys and values are kept instead of what blocks give (`kv_stacks`). Thread CPU time of one
thread, which others on the machine disturb least; a ratio is of two steps of the same round.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from kv_stacks import Kept, KvStacks
from lora_workloads import ROOT, sdxl_modules
from machine import describe
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swiftdiffusion.python_backends.engine.template_store import Company
from swiftdiffusion.python_backends.engine.token_calls import token_call
from swiftdiffusion.python_backends.engine.token_memory import TokenMemory
from swiftdiffusion.python_backends.engine.token_rows import TokenRow
from swiftdiffusion.python_backends.engine.token_runs import TokenRun
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.token_masks import TokenMask, token_mask
from swiftdiffusion.python_backends.networks.unet import UNet, example
from swiftdiffusion.python_backends.request.mask_aware import MaskAware

AREAS = (0.1, 0.2, 0.35, 0.5)
OUT = ROOT / "benchmarks/results/edit_steps.json"
HALVES, ROOM, MASKED_STEP = 2, 2**34, 2
ALONE = Company((), (), "the same")
CPU = torch.device("cpu")


class Steps:
    """One guided request's calls of one UNet."""

    def __init__(self, checkpoint: Checkpoint, side: int) -> None:
        """Random latents of so many cells along a side."""
        self._unet = UNet(checkpoint, CPU, torch.float32)
        assert self._unet.stacks is not None
        self._stacks, self._side = self._unet.stacks, side
        self._kv_stacks = KvStacks(self._unet._halves[0])
        self._tensors = example(checkpoint, HALVES)
        self._tensors["LATENTS"] = torch.randn(HALVES, checkpoint.unet_channels, side, side)
        self._tensors["TIMESTEPS"].fill_(500)

    def exact(self, rows: tuple[TokenRow, ...] = ()) -> None:
        """All tokens; as a shard does it, or keeping what blocks give."""
        with token_call(self._stacks, rows) if rows else nullcontext():
            self._call(traced=not rows)

    def keys_and_values(self) -> Kept:
        """What a step that computes all leaves where these are kept."""
        with self._kv_stacks.recorded() as kept:
            self._call(traced=False)
        return kept

    def masked_kv(self, mask: TokenMask, kept: Kept) -> None:
        """Masked tokens alone, by these."""
        with self._kv_stacks.masked(mask, kept):
            self._call(traced=False)

    def cached_bytes(self, mask: TokenMask, kept: Kept) -> dict[str, int]:
        """Of a row, in float32: what blocks give, and keys and values."""
        assert self._unet.token_costs is not None
        outputs = self._unet.token_costs.row(self._side, self._side, mask.sizes).cached
        return {"outputs": int(outputs), "KV": sum(each.nbytes for calls in kept.values() for each in calls) // HALVES}

    def _call(self, traced: bool) -> None:
        self._unet.decode(self._unet.encode(self._tensors, "the same", traced=traced))

    def run(self, area: float) -> TokenRun:
        """Of a square mask, with what two exact steps gave."""
        mask, edge = torch.zeros(self._side, self._side), round(self._side * math.sqrt(area))
        first = (self._side - edge) // 2
        mask[first : first + edge, first : first + edge] = 1
        levels = self._stacks.levels
        run = TokenRun(token_mask(mask, 1 + max(levels)), MaskAware("own", (0, 1)), 20, TokenMemory(ROOM), levels)
        for step in range(MASKED_STEP):
            self.exact(self.rows(run, step))
        return run

    @staticmethod
    def rows(run: TokenRun, step: int) -> tuple[TokenRow, ...]:
        """Both halves of a step."""
        found = run.rows(step, dict.fromkeys(range(HALVES), ALONE)).values()
        return tuple(row for row in found if row is not None)


def measure(name: str, checkpoint: Checkpoint, side: int, rounds: int) -> dict[str, Any]:
    """Seconds of every kind of step, and how much faster masked ones are."""
    steps = Steps(checkpoint, side)
    runs = {area: steps.run(area) for area in AREAS}
    kept, keys_and_values = steps.run(AREAS[0]), steps.keys_and_values()
    kinds: dict[str, Callable[[], None]] = {"all": steps.exact}
    kinds["all, kept"] = lambda: steps.exact(_again(kept, steps))
    for area, run in runs.items():
        kinds[f"{area:g}"] = lambda run=run: steps.exact(steps.rows(run, MASKED_STEP))  # type: ignore[misc]
        kinds[f"{area:g}, KV"] = lambda run=run: steps.masked_kv(run.mask, keys_and_values)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in track(range(rounds), name):
        for kind, step in kinds.items():
            started = time.thread_time()
            step()
            seconds[kind].append(time.thread_time() - started)
    ratios = {
        kind: statistics.quantiles([whole / own for whole, own in zip(seconds["all"], found, strict=True)], n=4)
        for kind, found in seconds.items()
    }
    tokens = {f"{area:g}": run.report(20)["tokens"] for area, run in runs.items()}
    return {
        "checkpoint": name,
        "latents": [side, side],
        "median_ms": {kind: round(1000 * statistics.median(found), 1) for kind, found in seconds.items()},
        "times_faster": {kind: [round(each, 3) for each in found] for kind, found in ratios.items()},
        "tokens_by_level": tokens,
        "cached_bytes_a_row": steps.cached_bytes(kept.mask, keys_and_values),
    }


def _again(run: TokenRun, steps: Steps) -> tuple[TokenRow, ...]:
    """A step that computes all and keeps it, once more."""
    for line in run.lines:
        line.forget()
    return steps.rows(run, 0)


def main(
    rounds: Annotated[int, typer.Option(min=3, help="Of each kind of step.")] = 9,
    out: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = ROOT
    / "benchmarks/results/edit_steps.json",
) -> None:
    """Measure steps that compute all, and masked ones."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    machine = describe()
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        settings = [
            measure("SDXL's modules at 1/5 width", sdxl_modules(Path(directory)), 64, rounds),
            measure("demo family", Checkpoint(ROOT / "export/demo/weights"), 16, rounds),
        ]
    result = {"command": f"python benchmarks/edit_steps.py --rounds {rounds}", "machine": machine, "settings": settings}
    out.write_text(json.dumps(result) + "\n", "utf-8")
    table = Table("checkpoint", "masked", "ms", "times faster", "quartiles", title="a step of two rows")
    for setting in settings:
        for kind, median in setting["median_ms"].items():
            low, middle, high = setting["times_faster"][kind]
            table.add_row(setting["checkpoint"], kind, f"{median:g}", f"{middle:.2f}", f"{low:.2f} … {high:.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
