"""A mask-aware step of SDXL's UNet with guidance on a GPU: as CUDA graphs, and as modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpu_networks import Ours, inputs, relative_error
from gpu_timing import compare

from swiftdiffusion.python_backends.networks.stack_modules import StackModules
from swiftdiffusion.python_backends.networks.token_codes import Codes
from swiftdiffusion.python_backends.networks.token_masks import token_mask
from swiftdiffusion.python_backends.networks.token_stacks import MaskedRows, TokenStacks, Values

ROWS = 2
AREAS = 0.1, 0.2, 0.35, 0.5
AS_MODULES = 0.2


class _Known:
    """What a template and its correction say of all rows, on the device: as `TemplateLine` does."""

    def __init__(self, values: Values) -> None:
        self._codes = [[Codes.of(row) for row in block] for block in values]
        self._corrections = [
            [value - (codes.values * codes.scales).to(value.dtype) for codes, value in zip(*each, strict=True)]
            for each in zip(self._codes, values, strict=True)
        ]
        self.nbytes = sum(codes.nbytes for block in self._codes for codes in block)

    def __call__(self, number: int, out: torch.Tensor) -> torch.Tensor:
        for row, codes, correction in zip(out, self._codes[number], self._corrections[number], strict=True):
            codes.into(row)
            row += correction
        return out


def measure(ours: Ours, rounds: int) -> dict[str, Any]:
    """Timings of steps over masks in the middle, and how far they are from the one that knows all they know."""
    if ours.network.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    stacks = ours.running.stacks
    assert stacks is not None and ours.running.beside is not None
    modules = TokenStacks(ours.network, partial(StackModules, beside=ours.running.beside.of))
    given = inputs(ours.network, ROWS)
    mine = ours.given(given)
    with stacks.recorded(range(ROWS)) as values:
        exact = ours.step(mine).clone()
    known = _Known(values)
    parts = {area: [_part(area, mine[0].shape[-1], stacks, known, mine[0].device)] for area in AREAS}

    def masked(of: TokenStacks, area: float, call: Callable[..., torch.Tensor]) -> torch.Tensor:
        with of.masked(parts[area]):
            return call(mine)

    def recorded() -> torch.Tensor:
        with stacks.recorded(range(ROWS)):
            return ours.step(mine)

    variants: dict[str, Callable[[], torch.Tensor]] = {"all tokens": lambda: ours.step(mine), "all, kept": recorded}
    for area in AREAS:
        variants[f"{area:g} masked"] = partial(masked, stacks, area, ours.step)
    variants[f"{AS_MODULES:g} masked, as modules"] = partial(
        masked, modules, AS_MODULES, partial(ours.eager, weights="the same")
    )
    errors = {name: relative_error(variant().clone(), exact) for name, variant in variants.items()}
    return {
        "timings": compare(variants, rounds),
        "error_against_all_tokens": errors,
        "template_bytes": known.nbytes,
        "peak_bytes": torch.cuda.max_memory_allocated() if mine[0].is_cuda else 0,
    }


def _part(area: float, side: int, stacks: TokenStacks, known: _Known, device: torch.device) -> MaskedRows:
    mask, edge = torch.zeros(side, side), round(side * math.sqrt(area))
    first = (side - edge) // 2
    mask[first : first + edge, first : first + edge] = 1
    places = token_mask(mask, 1 + max(stacks.levels)).to(device).places
    return MaskedRows(slice(0, ROWS), {key: each.repeat(ROWS, 1) for key, each in places.items()}, known)
