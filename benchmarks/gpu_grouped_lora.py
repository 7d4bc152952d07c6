"""LoRAs beside the weights at SDXL's sizes, a set for each request: what they add to the plain matrix product."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from gpu_kernels import changed_settings, copy_bandwidth
from gpu_timing import captured, compare
from rich.table import Table
from torch.nn import functional

from swiftdiffusion.kernels.configurations import CANDIDATES
from swiftdiffusion.kernels.grouped_lora import grouped_lora

LAYERS = (
    (4096, 640, 640),
    (4096, 640, 5120),
    (1024, 1280, 1280),
    (1024, 1280, 10240),
    (1024, 5120, 1280),
    (77, 2048, 1280),
)
"""Tokens, in, out: attention, both feed-forward layers, K and V of the prompt."""

ROWS = (4, 8, 16)
"""Two of each request: guidance."""

RANKS = (16, 64, 256)

SETS = 3
"""Inputs that take turns, so that none is in the cache when its turn comes."""

REPEATS = 4
"""Of them, in one captured graph."""


class Layer:
    """A linear layer, and rows of requests that each have a slot of their own.

    What is added is small: y takes it in hundreds of times.
    """

    def __init__(
        self, shape: tuple[int, int, int], rows: int, rank: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        tokens, features, width = shape

        def noise(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return scale * torch.randn(*shape, device=device, dtype=dtype)

        requests = -(-rows // 2)
        self.xs = [noise(rows, tokens, features) for _ in range(SETS)]
        self.ys = [noise(rows, tokens, width) for _ in range(SETS)]
        self.weight = noise(width, features, scale=features**-0.5)
        self.down = noise(requests, rank, features, scale=features**-0.5)
        self.up = noise(requests, width, rank, scale=1e-3 * rank**-0.5)
        self.slots = torch.arange(rows, device=device, dtype=torch.int32) // 2
        self.none = torch.full_like(self.slots, -1)
        self.ranks = torch.full((requests,), rank, device=device, dtype=torch.int32)

    @property
    def nbytes(self) -> int:
        """Least that the addition must move: x and the factors read once, y read and written once."""
        return sum(each.nbytes for each in (self.xs[0], self.down, self.up, self.ys[0], self.ys[0]))

    def bare(self, n: int) -> None:
        """The plain product."""
        functional.linear(self.xs[n % SETS], self.weight)

    def both(self, n: int) -> None:
        """The product, and the addition to it."""
        y = functional.linear(self.xs[n % SETS], self.weight)
        grouped_lora(y, self.xs[n % SETS], self.down, self.up, self.slots, self.ranks)

    def alone(self, n: int) -> None:
        """The addition."""
        grouped_lora(self.ys[n % SETS], self.xs[n % SETS], self.down, self.up, self.slots, self.ranks)

    def idle(self, n: int) -> None:
        """The addition where no row has LoRAs."""
        grouped_lora(self.ys[n % SETS], self.xs[n % SETS], self.down, self.up, self.none, self.ranks)

    def gathered(self, n: int) -> None:
        """The addition in PyTorch's operators: the rows' factors copied, then batched products."""
        low = torch.bmm(self.xs[n % SETS], self.down[self.slots].mT)
        self.ys[n % SETS].baddbmm_(low, self.up[self.slots].mT)


def measure(device: torch.device, dtype: torch.dtype, shrink: int, rounds: int, tune: bool) -> list[dict[str, Any]]:
    """A row per layer, number of rows and rank; `shrink` divides tokens, in and out.

    Args:
        device: Where.
        dtype: Of everything.
        shrink: 1 for the real sizes.
        rounds: Measured turns.
        tune: Whether to time the candidate settings too.
    """
    bandwidth = copy_bandwidth(device, shrink)
    results = []
    for sizes, rows, rank in product(LAYERS, ROWS, RANKS):
        tokens, features, width = (size // shrink for size in sizes)
        layer = Layer((tokens, features, width), rows, rank, device, dtype)
        variants = {
            "product": layer.bare,
            "product and ours": layer.both,
            "ours": layer.alone,
            "no row": layer.idle,
            "torch": layer.gathered,
        }
        times = _microseconds(variants, rounds)
        row: dict[str, Any] = {
            "layer": [tokens, features, width],
            "rows": rows,
            "rank": rank,
            "microseconds": times,
            "adds": round(times["product and ours"] / times["product"] - 1, 3),
            "torch_over_ours": round(times["torch"] / times["ours"], 3),
            "share_of_copy_bandwidth": round(1000 * layer.nbytes / times["ours"] / bandwidth, 3),
        }
        if tune:
            row["candidates"] = [_candidate(layer, dict(settings), rounds) for settings in CANDIDATES["grouped_lora"]]
        results.append(row)
    return [{"copy_gb_per_s": round(bandwidth / 1e6, 1)}, *results]


def table(results: list[dict[str, Any]]) -> Table:
    """The medians."""
    made = Table("layer", "rows", "rank", "product µs", "ours µs", "no row µs", "adds", "torch ÷ ours")
    for row in results[1:]:
        (tokens, features, width), times = row["layer"], row["microseconds"]
        micros = (f"{times[name]:.1f}" for name in ("product", "ours", "no row"))
        ratios = f"{row['adds']:.0%}", f"{row['torch_over_ours']:.2f}"
        made.add_row(f"{tokens} × {features}→{width}", str(row["rows"]), str(row["rank"]), *micros, *ratios)
    return made


def _candidate(layer: Layer, settings: dict[str, int], rounds: int) -> dict[str, Any]:
    with changed_settings(settings):
        return {**settings, "microseconds": _microseconds({"ours": layer.alone}, rounds)["ours"]}


def _microseconds(variants: dict[str, Any], rounds: int) -> dict[str, float]:
    calls = SETS * REPEATS
    timings = compare({name: captured(call, calls) for name, call in variants.items()}, rounds)
    return {name: round(1000 * timing.median_ms / calls, 3) for name, timing in timings.items()}
