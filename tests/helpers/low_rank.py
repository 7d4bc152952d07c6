"""LoRA sets for the kernels: in the tables that patch weights, and in the slots beside them."""

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


class SlotFactors(NamedTuple):
    """What a module's slots hold: down [S, R, in], up [S, out, R], ranks int32 [S]."""

    down: torch.Tensor
    up: torch.Tensor
    ranks: torch.Tensor

    @classmethod
    def random(cls, ranks: Sequence[int], bucket: int, features: int, width: int, dtype: torch.dtype) -> SlotFactors:
        """Zeros beyond a slot's rank; products with noise are about as large as the noise."""
        down, up = torch.zeros(len(ranks), bucket, features), torch.zeros(len(ranks), width, bucket)
        for slot, rank in enumerate(ranks):
            down[slot, :rank] = torch.randn(rank, features) / features**0.5
            up[slot, :, :rank] = torch.randn(width, rank) / max(1, rank) ** 0.5
        return cls(down.to(dtype), up.to(dtype), torch.tensor(ranks, dtype=torch.int32))


def add_by_row(y: torch.Tensor, x: torch.Tensor, held: SlotFactors, slots: Sequence[int]) -> torch.Tensor:
    """y + x · (up · down)ᵀ of every row's slot, by dense matrices in float64."""
    rows = []
    for row, slot in enumerate(slots):
        added = 0.0 if slot < 0 else x[row].double() @ (held.up[slot].double() @ held.down[slot].double()).mT
        rows.append(y[row].double() + added)
    return torch.stack(rows)


def _in_order(weight: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The factor's columns in the weight's memory order."""
    if weight.is_contiguous():
        return down
    return down.reshape(len(down), *weight.shape[1:]).permute(0, 2, 3, 1).reshape(len(down), -1)
