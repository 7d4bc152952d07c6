"""Each kernel alone at SDXL's sizes: against PyTorch's operators, and against the memory's measured bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from gpu_timing import captured, compare
from torch.nn import functional

from swiftdiffusion.kernels import (
    add_layer_norm,
    bias_residual,
    cfg_step,
    configurations,
    geglu,
    group_norm_silu,
    grouped_lora,
)
from swiftdiffusion.kernels.step_coefficients import StepCoefficients

Sets = list[torch.Tensor]
Noise = Callable[..., Sets]

SETS = 4
"""Input sets that take turns, so that none is in the cache when its turn comes."""

REPEATS = 5
"""Of the sets, in one captured graph."""


@dataclass(frozen=True)
class Case:
    """A kernel at one size.

    Attributes:
        op: Its name.
        shape: Of its input.
        nbytes: Least that it must move: every input read once, every output written once; GroupNorm reads a tensor
            twice that the L2 cache does not hold.
        ours: Call over an input set.
        torch: The same in PyTorch's operators.
    """

    op: str
    shape: tuple[int, ...]
    nbytes: int
    ours: Callable[[int], object]
    torch: Callable[[int], object]


def cases(device: torch.device, dtype: torch.dtype, shrink: int) -> Iterator[Case]:
    """SDXL at 1024² with guidance; `shrink` divides heights, widths and rows of tokens."""

    def noise(*shape: int) -> Sets:
        return [torch.randn(*shape, device=device, dtype=dtype) for _ in range(SETS)]

    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    for channels, side in ((320, 128), (640, 128), (640, 64), (1280, 64), (1280, 32), (2560, 32)):
        pictures = partial(noise, 2, channels, side // shrink, side // shrink)
        yield _group_norm(noise, pictures, channels, cache)
        yield _bias_residual(noise, pictures, channels)
    for tokens, width in ((4096, 640), (1024, 1280)):
        yield _add_layer_norm(noise, tokens // shrink**2, width)
    for tokens, width in ((4096, 2560), (1024, 5120)):
        yield _geglu(noise(2, tokens // shrink**2, 2 * width))
    yield _cfg_step(noise, (1, 4, 128 // shrink, 128 // shrink))


def _group_norm(noise: Noise, pictures: Callable[[], Sets], channels: int, cache: int) -> Case:
    xs = [x.contiguous(memory_format=torch.channels_last) for x in pictures()]
    (weight, bias, *_), embeddings = noise(channels), noise(2, channels)

    def fused(n: int) -> object:
        return group_norm_silu.group_norm_silu(xs[n], 32, weight, bias, embedding=embeddings[n])

    def separate(n: int) -> object:
        return functional.silu(functional.group_norm(xs[n] + embeddings[n][:, :, None, None], 32, weight, bias))

    trips = 2 if xs[0].nbytes <= cache else 3
    return Case("group_norm_silu", tuple(xs[0].shape), trips * xs[0].nbytes, fused, separate)


def _bias_residual(noise: Noise, pictures: Callable[[], Sets], channels: int) -> Case:
    xs, residuals = ([x.contiguous(memory_format=torch.channels_last) for x in pictures()] for _ in range(2))
    bias, *_ = noise(channels)

    def joined(n: int) -> object:
        return bias_residual.bias_residual(xs[n], bias, residuals[n])

    def in_turn(n: int) -> object:
        return residuals[n] + (xs[n] + bias[:, None, None])

    return Case("bias_residual", tuple(xs[0].shape), 3 * xs[0].nbytes, joined, in_turn)


def _add_layer_norm(noise: Noise, tokens: int, width: int) -> Case:
    xs, residuals, (weight, bias, *_) = noise(2, tokens, width), noise(2, tokens, width), noise(width)

    def joined(n: int) -> object:
        return add_layer_norm.add_layer_norm(xs[n], residuals[n], weight, bias)

    def in_turn(n: int) -> object:
        total = xs[n] + residuals[n]
        return total, functional.layer_norm(total, weight.shape, weight, bias)

    return Case("add_layer_norm", tuple(xs[0].shape), 4 * xs[0].nbytes, joined, in_turn)


def _geglu(xs: Sets) -> Case:
    def gated(n: int) -> object:
        return geglu.geglu(xs[n])

    def chunked(n: int) -> object:
        hidden, gate = xs[n].chunk(2, dim=-1)
        return hidden * functional.gelu(gate)

    return Case("geglu", tuple(xs[0].shape), xs[0].nbytes * 3 // 2, gated, chunked)


def _cfg_step(noise: Noise, shape: tuple[int, ...]) -> Case:
    samples = [sample.float() for sample in noise(*shape)]
    halves, (sigma, following) = (noise(*shape), noise(*shape)), (2.5, 2.0)
    euler = StepCoefficients(
        x0_of_output=-sigma,
        along_sample=1.0,
        along_x0=-1.0,
        direction_divisor=sigma,
        of_sample=1.0,
        of_direction=following - sigma,
    )
    coefficients = torch.tensor([euler.row(5.0)], device=samples[0].device)

    def step(n: int) -> object:
        return cfg_step.cfg_step(samples[n], halves[0][n], coefficients, halves[1][n])

    def steps(n: int) -> object:
        sample, conditional, unconditional = samples[n], halves[0][n].float(), halves[1][n].float()
        denoised = sample - sigma * (unconditional + 5.0 * (conditional - unconditional))
        return sample + (sample - denoised) / sigma * (following - sigma), denoised

    moved = 3 * samples[0].nbytes + 2 * halves[0][0].nbytes
    return Case("cfg_step", shape, moved, step, steps)


def measure(device: torch.device, dtype: torch.dtype, shrink: int, rounds: int, tune: bool) -> list[dict[str, Any]]:
    """A row per case, with the fastest of the candidate settings if `tune`."""
    bandwidth = copy_bandwidth(device, shrink)
    rows = []
    calls = SETS * REPEATS
    for case in cases(device, dtype, shrink):
        variants = {
            side: captured(lambda n, call=call: call(n % SETS), calls)
            for side, call in (("ours", case.ours), ("torch", case.torch))
        }
        timings = compare(variants, rounds)
        milliseconds = timings["ours"].median_ms / calls
        row = {
            "op": case.op,
            "shape": case.shape,
            "microseconds": {name: round(1000 * timing.median_ms / calls, 3) for name, timing in timings.items()},
            "torch_over_ours": round(timings["torch"].median_ms / timings["ours"].median_ms, 3),
            "share_of_copy_bandwidth": round(case.nbytes / milliseconds / bandwidth, 3),
        }
        if tune:
            row["candidates"] = [_candidate(case, settings, rounds, calls) for settings in _candidates(case.op)]
        rows.append(row)
    return [{"copy_gb_per_s": round(bandwidth / 1e6, 1)}, *rows]


def copy_bandwidth(device: torch.device, shrink: int) -> float:
    """Bytes read and written in a millisecond by a large copy on the device."""
    size = 2**30 // shrink**4
    source, target = (torch.empty(size, dtype=torch.uint8, device=device).random_() for _ in range(2))
    return 2 * size / compare({"copy": lambda: target.copy_(source)}, 20)["copy"].median_ms


def _candidates(op: str) -> tuple[dict[str, int], ...]:
    return tuple(dict(settings) for settings in configurations.CANDIDATES[op])


def _candidate(case: Case, settings: dict[str, int], rounds: int, calls: int) -> dict[str, Any]:
    with changed_settings(settings):
        call = captured(lambda n: case.ours(n % SETS), calls)
        timing = compare({"it": call}, rounds)["it"]
    return {
        **settings,
        "microseconds": round(1000 * timing.median_ms / calls, 3),
    }


@contextmanager
def changed_settings(settings: dict[str, int]) -> Iterator[None]:
    """Over those of the table, in every op."""
    known = configurations.configuration

    def changed(op: str, device: torch.device | int) -> dict[str, int]:
        return known(op, device) | settings

    with (
        mock.patch.object(group_norm_silu, "configuration", changed),
        mock.patch.object(geglu, "configuration", changed),
        mock.patch.object(add_layer_norm, "configuration", changed),
        mock.patch.object(bias_residual, "configuration", changed),
        mock.patch.object(cfg_step, "configuration", changed),
        mock.patch.object(grouped_lora, "configuration", changed),
    ):
        yield
