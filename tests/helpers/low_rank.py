"""LoRA sets for the patch kernel's tables, module by module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from swiftdiffusion.kernels.lora_tables import FactorGroup, PatchPlan, WeightTable


class Term(NamedTuple):
    """scale · up · down of one module; down is in the order of a contiguous weight."""

    up: torch.Tensor
    down: torch.Tensor
    scale: float


def plan_of(table: WeightTable, terms: Mapping[int, Sequence[Term]], restored: Iterable[int] = ()) -> PatchPlan:
    """Each term as a LoRA of its own."""
    loras = [
        (table.pack([FactorGroup([module], term.up[None], _in_order(table.weights[module], term.down)[None], [0.5])]),
         2 * term.scale)
        for module, of_module in terms.items()
        for term in of_module
    ]  # fmt: skip
    return table.plan(loras, restored)


def _in_order(weight: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The factor's columns in the weight's memory order."""
    if weight.is_contiguous():
        return down
    return down.reshape(len(down), *weight.shape[1:]).permute(0, 2, 3, 1).reshape(len(down), -1)
