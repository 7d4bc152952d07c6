"""How well a shard knows what its calls take, and what it saves that requests share one: SDXL's blocks at 1/5 width.

Calls of one to four rows, each with a mask of its own or none, of three sizes. What each takes is expected before it is
made, from those before, as the shard's planner, placement and forecasts do. Thread CPU time of one thread.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from lora_workloads import ROOT, sdxl_modules
from machine import describe
from rich.console import Console
from rich.progress import track

from swiftdiffusion.python_backends.engine.row_costs import RowCosts
from swiftdiffusion.python_backends.engine.template_store import Company
from swiftdiffusion.python_backends.engine.token_calls import token_call
from swiftdiffusion.python_backends.engine.token_memory import TokenMemory
from swiftdiffusion.python_backends.engine.token_rows import TokenRow
from swiftdiffusion.python_backends.engine.token_runs import TokenRun
from swiftdiffusion.python_backends.networks.token_masks import token_mask
from swiftdiffusion.python_backends.networks.unet import UNet, example
from swiftdiffusion.python_backends.request.mask_aware import MaskAware

SIDES, AREAS, MOST_ROWS = (32, 48, 64), (0.1, 0.2, 0.35, 0.45), 4
SHARED = 0.15, 0.27
HALVES, STEPS, ROOM, SIDE = 2, 20, 2**34, 64
CPU, ALONE = torch.device("cpu"), Company((), (), "")
OUT = ROOT / "benchmarks/results/edit_costs.json"


class Calls:
    """Of one UNet."""

    def __init__(self, directory: Path) -> None:
        self._checkpoint = sdxl_modules(directory)
        self._unet = UNet(self._checkpoint, CPU, torch.float32)
        assert self._unet.stacks is not None
        self._stacks, self._memory = self._unet.stacks, TokenMemory(ROOM)
        self.costs = RowCosts(self._unet.token_costs, self._unet.scale_factor)
        self._latents = {side: torch.randn(2 * HALVES + 2, self._unet.latent_channels, side, side) for side in SIDES}

    def rows(self, side: int, area: float) -> list[TokenRow]:
        """Both halves of a request with a square mask, in a step that leaves tokens out."""
        mask, edge = torch.zeros(side, side), round(side * math.sqrt(area))
        mask[:edge, :edge] = 1
        levels = self._stacks.levels
        run = TokenRun(token_mask(mask, 1 + max(levels)), MaskAware("own", ()), STEPS, self._memory, levels)
        for step in range(2):
            self.seconds(side, _rows(run, step))
        return _rows(run, 2)

    def kept(self, side: int) -> list[TokenRow]:
        """The same in its first step, which computes all and keeps it."""
        levels = self._stacks.levels
        mask = token_mask(torch.eye(side)[:1].T @ torch.eye(side)[:1], 1 + max(levels))
        return _rows(TokenRun(mask, MaskAware("own", ()), STEPS, self._memory, levels), 0)

    def seconds(self, side: int, rows: Sequence[TokenRow | None]) -> float:
        """What a call takes."""
        rows = sorted(rows, key=lambda row: () if row is None else row.sizes)
        tensors = example(self._checkpoint, len(rows)) | {"LATENTS": self.latents(side, len(rows))}
        started = time.thread_time()
        if any(rows):
            with token_call(self._stacks, rows):
                self._unet.decode(self._unet.encode(tensors, "the same", traced=False))
        else:
            self._unet.decode(self._unet.encode(tensors, "the same"))
        return time.thread_time() - started

    def latents(self, side: int, rows: int) -> torch.Tensor:
        """[rows, C, side, side]."""
        return self._latents[side][:rows]


def _rows(run: TokenRun, step: int) -> list[TokenRow]:
    return [row for row in run.rows(step, dict.fromkeys(range(HALVES), ALONE)).values() if row is not None]


def expectations(calls: Calls, count: int) -> list[tuple[float, float]]:
    """Of each call what was expected, and what it took."""
    chance, found = random.Random(0), []
    masked = {(side, area): calls.rows(side, area) for side in SIDES for area in AREAS}
    for _ in track(range(count), "calls"):
        side = chance.choice(SIDES)
        rows: list[TokenRow | None] = [None] * chance.randint(1, MOST_ROWS)
        if chance.random() < 0.75:
            rows = [chance.choice(masked[side, chance.choice(AREAS)]) for _ in rows]
        features = calls.costs.features(calls.latents(side, len(rows)), rows if any(rows) else ())
        assert features is not None
        expected = calls.costs.calls.expected(features)
        seconds = calls.seconds(side, rows)
        calls.costs.note(features, seconds)
        found.append((expected, seconds))
    return found


def shared(calls: Calls, rounds: int) -> list[tuple[float, float]]:
    """Two masked steps and one that computes all: in one call, and in three."""
    requests = [*(calls.rows(SIDE, area) for area in SHARED), calls.kept(SIDE)]
    together = [row for each in requests for row in each]
    return [
        (calls.seconds(SIDE, together), sum(calls.seconds(SIDE, each) for each in requests))
        for _ in track(range(rounds), "shared")
    ]


def main(
    count: Annotated[int, typer.Option(min=20, help="Calls; the first half is not looked at.")] = 120,
    rounds: Annotated[int, typer.Option(min=3, help="Of calls that are shared.")] = 7,
    out: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = OUT,
) -> None:
    """Measure calls of every kind."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    machine = describe()
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        calls = Calls(Path(directory))
        expected, seconds = zip(*expectations(calls, count)[count // 2 :], strict=True)
        pairs = shared(calls, rounds)
    errors = [abs(before / took - 1) for before, took in zip(expected, seconds, strict=True)]
    left = sum((took - before) ** 2 for before, took in zip(expected, seconds, strict=True))
    result = {
        "r_squared": round(1 - left / (len(seconds) * statistics.pvariance(seconds)), 4),
        "error_mean": round(statistics.mean(errors), 4),
        "error_worst": round(max(errors), 4),
        "shared_s": round(statistics.median(together for together, _ in pairs), 3),
        "apart_s": round(statistics.median(apart for _, apart in pairs), 3),
        "apart_over_shared": round(statistics.median(apart / together for together, apart in pairs), 3),
    }
    command = f"python benchmarks/edit_costs.py --count {count} --rounds {rounds}"
    out.write_text(json.dumps({"command": command, "machine": machine} | result) + "\n", "utf-8")
    Console().print(result)


if __name__ == "__main__":
    typer.run(main)
