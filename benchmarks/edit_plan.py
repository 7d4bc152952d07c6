"""What planning which transformer stacks load would be worth, on SDXL's shapes: calculated, nothing here is measured.

One mask-aware request at 1024 × 1024, two rows, in one step. Seconds of computation are shared out by multiply-adds,
loads are whole tensors over a link.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import UNet2DConditionModel
from lora_workloads import ROOT, SDXL
from rich.console import Console
from rich.table import Table

from swiftdiffusion.python_backends.engine.call_costs import CallCosts
from swiftdiffusion.python_backends.engine.token_plan import Plan, StackCost, greedy, plan, simulate, steady
from swiftdiffusion.python_backends.networks.token_costs import Features, TokenCosts

OUT = ROOT / "benchmarks/results/edit_plan.json"
FULL_WIDTH = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 1280,
    "cross_attention_dim": 2048,
}
"""SDXL's own, where `lora_workloads.SDXL` is narrower."""

SIDE, ROWS, ROW_MS = 128, 2, 20.6
"""Latent cells along a side, both halves of guidance, and computation of a row: DiFlow's profile on an H800."""

PARTS = 16
"""Of a level's tokens: masked ones are padded to a multiple of such a part, as `token_mask` does."""

LINKS, VALUE_BYTES, AREAS = (3, 6, 12, 25, 50), {"int8": 1, "fp16": 2}, (0.1, 0.2, 0.35)
"""GB/s of a link; bytes of a value that is kept; share of the tokens that are masked."""

PLANNED = ("greedy", "plan", "steady")
"""Schemes of which the file says which stacks load."""

ROOMS = (1, 2, 4)
"""Loads that may wait at a time, beside no bound."""


def sdxl(value_bytes: int) -> TokenCosts:
    """Of the real shapes; there are no weights."""
    with torch.device("meta"):
        return TokenCosts(UNet2DConditionModel(**{**SDXL, **FULL_WIDTH}), value_bytes)


class Step:
    """One step with a mask."""

    def __init__(self, costs: TokenCosts, area: float, gigabytes_per_second: float) -> None:
        """Of both rows."""
        whole = costs.row(SIDE, SIDE)
        parts = math.ceil(area * PARTS)
        sizes = [parts * (SIDE // 2**level) ** 2 // PARTS for level in range(3)]
        seconds = CallCosts(costs.convolutions)
        seconds.note(_rows(whole), ROWS * ROW_MS / 1000)
        every, masked = (list(map(_rows, costs.stacks(SIDE, SIDE, each))) for each in (None, sizes))
        self.stacks = seconds.stacks(every, masked, gigabytes_per_second * 1e9)
        after = replace(Features(), cells=whole.cells - sum(each.cells for each in costs.stacks(SIDE, SIDE)))
        self.after = seconds.expected(_rows(after))
        self.tokens = parts / PARTS

    def schemes(self) -> dict[str, Plan]:
        """Seconds of each."""
        stacks = self.stacks
        count = len(stacks)
        one_after_the_other = [StackCost(0.0, each.load + each.masked, each.all, each.before) for each in stacks]
        loads = sum(each.load for each in stacks)
        sequential = Plan((True,) * count, simulate(one_after_the_other, (True,) * count)[0], loads)
        plans = {
            "all computed": _fixed(stacks, False),
            "load, then compute": sequential,
            "all cached": _fixed(stacks, True),
            "greedy": greedy(stacks),
            "plan": plan(stacks),
            "steady": steady([*stacks, StackCost(0.0, 0.0, 0.0, self.after)]),
        }
        for room in ROOMS:
            plans[f"greedy, room for {room}"] = greedy(stacks, room=room)
            plans[f"plan, room for {room}"] = plan(stacks, room=room)
        after = {name: 0.0 if name == "steady" else self.after for name in plans}
        return {name: replace(each, seconds=each.seconds + after[name]) for name, each in plans.items()}


def _fixed(stacks: tuple[StackCost, ...], cached: bool) -> Plan:
    return Plan((cached,) * len(stacks), *simulate(stacks, [cached] * len(stacks)))


def _rows(features: Features) -> Features:
    return sum([features] * ROWS, Features())


def _shown(step: Step) -> dict[str, Any]:
    found = step.schemes()
    cached = {name: "".join("01"[each] for each in found[name].cached[: len(step.stacks)]) for name in PLANNED}
    return {"ms": {name: round(1000 * each.seconds, 1) for name, each in found.items()}, "cached": cached}


def main(out: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = OUT) -> None:
    """Calculate a step by all schemes."""
    costs = {name: sdxl(value_bytes) for name, value_bytes in VALUE_BYTES.items()}
    settings = []
    for (kept, of_kept), link, area in product(costs.items(), LINKS, AREAS):
        step = Step(of_kept, area, link)
        settings.append({"kept": kept, "gb_per_s": link, "masked": area, "tokens": step.tokens, **_shown(step)})
    result = {
        "command": "python benchmarks/edit_plan.py",
        "measured": False,
        "how": f"calculated: SDXL at 1024 × 1024, {ROWS} rows, {ROW_MS} ms of computation a row shared out by "
        "multiply-adds, whole tensors loaded, room for all where nothing else is said",
        "settings": settings,
    }
    out.write_text(json.dumps(result, separators=(",", ":")) + "\n", "utf-8")
    names = list(settings[0]["ms"])
    table = Table("kept", "GB/s", "masked", *names, "plan caches", title="ms of a step: CALCULATED, not measured")
    for setting in settings:
        shown = [f"{each:.1f}" for each in setting["ms"].values()]
        table.add_row(
            setting["kept"], f"{setting['gb_per_s']}", f"{setting['masked']:g}", *shown, setting["cached"]["plan"]
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
