"""What each of `networks.savings`, and 8-bit floats, save in a UNet step: with and without, in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from gpu_networks import Ours, diffusers_call, in_float32, inputs, relative_error
from gpu_timing import Timing, compare
from rich.table import Table

from swiftdiffusion.python_backends.networks.fp8 import Fp8UnavailableError, require_fp8
from swiftdiffusion.python_backends.networks.runtimes import Runtime
from swiftdiffusion.python_backends.networks.savings import ALL, NONE, Savings

Make = Callable[[], Any]
DEPENDENT = ("qkv", "zero_prompts")
"""Nothing without `divisions`: what these are compared with has it, and what it is compared with has none of them."""

OF_SD15 = "shared_layers"
"""Nothing in SDXL."""


def variants(device: torch.device) -> dict[str, tuple[Runtime, Runtime]]:
    """Of each saving: with it, and without; and of 8-bit floats, where the device has them.

    First those without tuned convolutions: cuDNN forgets no algorithm.
    """
    names = [each.name for each in fields(Savings) if each.name != OF_SD15]
    pairs = {name: (ALL, replace(ALL, **{name: False})) for name in ("tuned_convolutions", *names)}
    without = replace(ALL, **dict.fromkeys(DEPENDENT, False))
    pairs = {"all": (ALL, NONE), **pairs, "divisions": (without, replace(without, divisions=False))}
    runtimes = {name: (Runtime(savings=each), Runtime(savings=other)) for name, (each, other) in pairs.items()}
    with suppress(Fp8UnavailableError):
        require_fp8(device)
        runtimes["fp8"] = Runtime(fp8=True), Runtime()
    return runtimes


class _Given(NamedTuple):
    """Inputs of some rows, and what diffusers' modules make of them in float32."""

    inputs: tuple[torch.Tensor, ...]
    exact: torch.Tensor


def measure(make: Make, rounds: int) -> dict[str, Any]:
    """For two rows, of which the first has a prompt of zeros as SDXL's empty negative prompt is, and for one with one.

    Args:
        make: A UNet of the same weights, each time it is called.
        rounds: Measured turns.
    """
    reference, given, results = make(), dict[str, _Given](), dict[str, dict[str, Any]]()
    for rows in (2, 1):
        taken = inputs(reference, rows)
        taken[2][: rows // 2] = 0
        name = f"{rows} rows"
        given[name] = _Given(taken, in_float32(reference, taken))
        eager = relative_error(diffusers_call(reference, taken)(), given[name].exact)
        results[name] = {"diffusers": {"error_against_float32": eager}}
    del reference
    kinds = [Runtime(savings=each) for each in (NONE, replace(ALL, tuned_convolutions=False))]
    untuned = {runtime: Ours(make(), runtime) for runtime in kinds}
    for ours in untuned.values():
        for each in given.values():
            ours.step(ours.given(each.inputs))  # captured before anything is tuned
    with_all = Ours(make())
    for name, pair in variants(with_all.network.device).items():
        networks = [_network(runtime, make, with_all, untuned) for runtime in pair]
        for rows, each in given.items():
            results[rows][name] = _compared(networks, each, rounds)
        del networks
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results


def _network(runtime: Runtime, make: Make, with_all: Ours, untuned: dict[Runtime, Ours]) -> Ours:
    return with_all if runtime == Runtime() else untuned.pop(runtime, None) or Ours(make(), runtime)


def _compared(networks: Sequence[Ours], given: _Given, rounds: int) -> dict[str, Any]:
    named = dict(zip(("with", "without"), networks, strict=True))
    calls = {name: partial(ours.step, ours.given(given.inputs)) for name, ours in named.items()}
    predicted = {name: call().clone() for name, call in calls.items()}
    timings = compare(calls, rounds)
    return {
        "milliseconds": {name: asdict(timing) for name, timing in timings.items()},
        "saved_ms": round(timings["without"].median_ms - timings["with"].median_ms, 4),
        "same_bits": bool(torch.equal(predicted["with"], predicted["without"])),
        "error_against_float32": {name: relative_error(each, given.exact) for name, each in predicted.items()},
    }


def table(results: dict[str, Any]) -> Table:
    """What each saved."""
    shown = Table("rows", "saving", "ms with", "without", "saves", "quartiles", "same bits")
    for rows, savings in results.items():
        for name, each in savings.items():
            if "milliseconds" in each:
                with_, without = (Timing(**each["milliseconds"][side]) for side in ("with", "without"))
                low, high = with_.quartiles_ms
                numbers = (with_.median_ms, without.median_ms, each["saved_ms"])
                spread = f"{low:.3f} to {high:.3f}"
                shown.add_row(rows, name, *(f"{number:.3f}" for number in numbers), spread, str(each["same_bits"]))
    return shown
