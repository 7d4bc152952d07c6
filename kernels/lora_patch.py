"""All modules of a LoRA set patched in one launch."""

from __future__ import annotations

from collections.abc import Sequence  # the op's schema is read from annotations
from typing import TYPE_CHECKING, Any

import torch

from .configurations import configuration
from .kernel_source import TYPES, KernelSource
from .lora_tables import SLOT_COLUMNS
from .registration import register_op
from .triton_language import kernels_of

if TYPE_CHECKING:
    from .lora_tables import PatchPlan, WeightTable


def lora_patch(table: WeightTable, plan: PatchPlan) -> None:
    """W ← W0 + Σ scale · up · down for every module of the plan, in place; without terms, W ← W0 bit for bit.

    Sums are float32 and begin with W0, whatever is patched in: every set gives the same bits however often it is
    swapped. Products of half-precision factors are exact; float32 factors are multiplied in three TF32 passes, or, for
    float32 weights, as float32.

    Limited by memory: every weight of the plan is read once (W0) and written once, 2 · itemsize · elements bytes, and
    the factors once from L2 for each row and column of tiles. SDXL's adaptable weights, 2.5 · 10⁹ in half precision,
    are 10 GB: 2.1 ms at an H200's 4.8 TB/s. Two LoRAs of rank 64 add 6.4 · 10¹¹ operations, under a millisecond of its
    tensor cores in half precision.

    Args:
        table: The model's weights.
        plan: Of this table, for the device that it runs on.

    Raises:
        ValueError: If a weight has moved since the table was built.
        MissingTritonError: For CUDA tensors without the `triton` package.
    """
    table.check_addresses()
    _op(table.buffers, table.pristine, plan.factors, plan.slots, plan.terms, plan.scales, plan.tiles, list(plan.block))


def reference(
    weights: Sequence[torch.Tensor],
    pristine: torch.Tensor,
    factors: torch.Tensor,
    slots: torch.Tensor,
    terms: torch.Tensor,
    scales: torch.Tensor,
    tiles: torch.Tensor,
    block: Sequence[int],
) -> None:
    """The op in PyTorch's operators, from the same tables; tiles and their size play no part."""
    for _, number, start, place, rows, columns, first, end, *_ in slots.tolist():
        target = weights[number][start : start + rows * columns].view(rows, columns)
        base = pristine[place : place + rows * columns].view(rows, columns)
        if first == end:
            target.copy_(base)
            continue
        total = base.float()
        if base.dtype == torch.float32:
            total = total.clone()
        for (up, down, rank, _), scale in zip(terms[first:end].tolist(), scales[first:end].tolist(), strict=True):
            left = factors[up : up + rows * rank].view(rows, rank).float()
            right = factors[down : down + rank * columns].view(rank, columns).float()
            total.addmm_(left, right, alpha=scale)
        target.copy_(total)


def launch(
    weights: Sequence[torch.Tensor],
    pristine: torch.Tensor,
    factors: torch.Tensor,
    slots: torch.Tensor,
    terms: torch.Tensor,
    scales: torch.Tensor,
    tiles: torch.Tensor,
    block: Sequence[int],
) -> None:
    """The kernel, on a GPU or in Triton's interpreter; the tables of `lora_tables`."""
    kernels = kernels_of("lora_patch")
    if not len(tiles):
        return
    settings = configuration("lora_patch", pristine.device)
    with torch.cuda.device_of(pristine):
        kernels.lora_patch[len(tiles),](
            pristine, factors, slots, terms, scales, tiles,
            **_constants(block, settings["block_rank"], pristine.dtype, factors.dtype), num_warps=settings["num_warps"],
        )  # fmt: skip


def sources(weight: torch.dtype, factor: torch.dtype, architecture: int) -> tuple[KernelSource, ...]:
    """What to compile ahead of time: shapes and ranks play no part.

    Args:
        weight: Type of the weights.
        factor: Type of the factors.
        architecture: Such as 90.

    Raises:
        MissingTritonError: Without the `triton` package.
    """
    kernels = kernels_of("lora_patch")
    settings = configuration("lora_patch", architecture)
    types = {"pristine": f"*{TYPES[weight]}", "factors": f"*{TYPES[factor]}", "scales": "*fp32", "tiles": "*i32"}
    types |= dict.fromkeys(("slots", "terms"), "*i64")
    block = settings["block_rows"], settings["block_columns"]
    constants = _constants(block, settings["block_rank"], weight, factor)
    return (KernelSource(kernels.lora_patch, types, constants, settings["num_warps"]),)


def _constants(block: Sequence[int], rank: int, weight: torch.dtype, factor: torch.dtype) -> dict[str, Any]:
    exact = weight == torch.float32 or factor != torch.float32
    return {
        "WIDTH": SLOT_COLUMNS,
        "ROWS": block[0],
        "COLUMNS": block[1],
        "RANK": rank,
        "PRECISION": "ieee" if exact else "tf32x3",
    }


_op = register_op("lora_patch", reference, launch, lambda *tables: None, mutates=("weights",))
