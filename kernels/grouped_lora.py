"""LoRAs beside the weights: rows of one batch with different LoRA sets, as one op."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from .configurations import configuration, multiprocessors
from .group_norm_plan import power_of_two
from .kernel_source import TYPES, KernelSource
from .registration import register_op
from .row_batches import row_batches
from .triton_language import kernels_of

if TYPE_CHECKING:
    from collections.abc import Mapping

VECTOR = 16
"""What rank buckets are multiples of: the least that tensor cores multiply."""

WARM_TOKENS, WARM_WIDTH = (64, 77), 64
"""Sizes that stand for all others of a UNet, to whom compiles."""

SHARE = 256
"""On a GPU: features that a split of the first product has at least."""


def grouped_lora(
    y: torch.Tensor,
    x: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    slots: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """y[b] += (x[b] · down[slots[b]]ᵀ) · up[slots[b]]ᵀ for every row b that has a slot, in place.

    A slot holds the factors of one whole LoRA set for one module: the ranks of its LoRAs side by side, their scales
    multiplied into `up`, zeros up to the rank bucket R. Slots, their ranks and the rows' slots are read where the op
    runs: buffers that are overwritten in place keep CUDA graphs and traces valid.

    Sums are float32. What lies between the products, x · downᵀ, is rounded once to the wider type of x and the factors:
    tensor cores then take half-precision factors as they are, and y is rounded to no more digits anyway. Half-precision
    x with float32 factors is multiplied in three TF32 passes.

    Limited by memory: x is read once, y read and written once, (in + 2 · out) · itemsize bytes a token. For in = out in
    half precision that is 0.7 · rank operations a byte, of which an H100 does 200 in the time. Rows without LoRAs move
    nothing. On the CPU, rows of one slot that lie together are one product, neighbours with small factors a batch.

    Args:
        y: [B, T, out], what the untouched weights give; contiguous, of x's type.
        x: [B, T, in], float16, bfloat16 or float32. Copied if it is not contiguous.
        down: [S, R, in], contiguous, any of these types; R a multiple of VECTOR.
        up: [S, out, R], contiguous, of down's type.
        slots: int32 [B], each below S; negative for a row without LoRAs.
        ranks: int32 [S], how much of R is used, at most R; 0 for nothing.

    Raises:
        ValueError: If shapes, types or memory formats do not fit.
        MissingTritonError: For CUDA tensors without the `triton` package.
    """
    _check(y, x, down, up, slots, ranks)
    _op(y, x.contiguous(), down, up, slots, ranks)


def reference(
    y: torch.Tensor,
    x: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    slots: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """The op in PyTorch's operators; arguments as of `grouped_lora`."""
    (_, tokens, features), width = x.shape, y.shape[2]
    between = torch.promote_types(x.dtype, down.dtype)
    used = ranks.tolist()
    for batch in row_batches(slots.tolist(), used, features + width):
        left, right = batch.factors(down, up, max(used[slot] for slot in batch.slots))
        shape = len(batch.slots), batch.length * tokens
        given, target = x[batch.rows].view(*shape, features), y[batch.rows].view(*shape, width)
        if x.dtype == down.dtype == torch.float32:
            target.baddbmm_(torch.bmm(given, left), right)
        else:
            low = torch.bmm(given.float(), left.float()).to(between)
            target.copy_(torch.baddbmm(target.float(), low.float(), right.float()))


def launch(
    y: torch.Tensor,
    x: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    slots: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """The kernels, on a GPU or in Triton's interpreter; arguments as of `grouped_lora`."""
    kernels = kernels_of("grouped_lora")
    if not (y.numel() and x.numel() and down.numel()):
        return
    (rows, tokens, features), bucket, width = x.shape, down.shape[1], y.shape[2]
    settings = configuration("grouped_lora", x.device)
    shrink, expand = _constants(tokens, bucket, x.dtype, down.dtype, settings)
    blocks, rank_blocks = -(-tokens // shrink["TOKENS"]), -(-bucket // shrink["RANK"])
    free = multiprocessors(x.device) // (rows * blocks * rank_blocks)
    splits, share = _splits(free, features, shrink["FEATURES"], settings["most_splits"])
    low = x.new_empty((splits, rows, tokens, bucket), dtype=torch.float32)
    num_warps = settings["num_warps"]
    with torch.cuda.device_of(x):
        kernels.shrink[blocks * rank_blocks, splits, rows](
            x, down, slots, ranks, tokens, features, bucket, share, low, **shrink, num_warps=num_warps
        )
        kernels.expand[-(-width // expand["COLUMNS"]), blocks, rows](
            low, up, slots, ranks, tokens, width, bucket, splits, y, **expand, num_warps=num_warps
        )


def sources(
    tokens: int,
    features: int,
    width: int,
    bucket: int,
    dtype: torch.dtype,
    factor: torch.dtype,
    architecture: int,
    settings: Mapping[str, int] | None = None,
) -> tuple[KernelSource, ...]:
    """What to compile ahead of time: the two kernels, for any number of rows and slots.

    Args:
        tokens: T.
        features: In.
        width: Out.
        bucket: R.
        dtype: Of x and y.
        factor: Of the factors.
        architecture: Such as 90.
        settings: Those of the configuration if None.

    Raises:
        MissingTritonError: Without the `triton` package.
    """
    kernels = kernels_of("grouped_lora")
    settings = settings or configuration("grouped_lora", architecture)
    shrink, expand = _constants(tokens, bucket, dtype, factor, settings)
    common = {"slots": "*i32", "ranks": "*i32", "tokens": "i32", "bucket": "i32", "low": "*fp32"}
    first = common | {"x": f"*{TYPES[dtype]}", "down": f"*{TYPES[factor]}", "features": "i32", "share": "i32"}
    second = common | {"y": f"*{TYPES[dtype]}", "up": f"*{TYPES[factor]}", "width": "i32", "splits": "i32"}
    sizes = {"tokens": tokens, "features": features, "width": width, "bucket": bucket, "share": shrink["FEATURES"]}
    even = frozenset(name for name, size in sizes.items() if size % 16 == 0)
    num_warps = settings["num_warps"]
    return (
        KernelSource(kernels.shrink, first, shrink, num_warps, even & first.keys()),
        KernelSource(kernels.expand, second, expand, num_warps, even & second.keys()),
    )


def warm_up(dtype: torch.dtype, factor: torch.dtype, device: torch.device) -> None:
    """Compiles on a GPU what LoRAs of any rank will want there: no step waits for it.

    How many tokens there are matters as far as they are multiples of 16 or not: so do 64 of a picture and 77 of a
    prompt. Fewer than a block of tokens, or odd widths, are compiled when they come.

    Args:
        dtype: Of x and y.
        factor: Of the factors.
        device: A GPU.
    """
    largest, slots = (
        configuration("grouped_lora", device)["block_rank"],
        torch.zeros(1, dtype=torch.int32, device=device),
    )
    for tokens, bucket in product(WARM_TOKENS, _buckets(largest)):
        y = torch.zeros(1, tokens, WARM_WIDTH, dtype=dtype, device=device)
        down = torch.zeros(1, bucket, WARM_WIDTH, dtype=factor, device=device)
        launch(y, y, down, down.mT.contiguous(), slots, slots)


def _buckets(largest: int) -> list[int]:
    return [VECTOR << shift for shift in range((largest // VECTOR).bit_length())]


def _constants(
    tokens: int, bucket: int, dtype: torch.dtype, factor: torch.dtype, settings: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the two kernels; float32 products take blocks half as wide, for twice the bytes."""
    narrower = torch.promote_types(dtype, factor).itemsize // 2
    lanes = {
        "TOKENS": max(VECTOR, min(settings["block_tokens"], power_of_two(tokens))),
        "RANK": min(settings["block_rank"] // narrower, power_of_two(bucket)),
        "PRECISION": "ieee" if dtype in (factor, torch.float32) else "tf32x3",
    }
    features, columns = settings["block_features"] // narrower, settings["block_columns"] // narrower
    return lanes | {"FEATURES": features}, lanes | {"COLUMNS": columns}


def _splits(free: int, features: int, block: int, most: int) -> tuple[int, int]:
    """How many programs share the features of a block where there would be few programs, and how many each has.

    Args:
        free: Multiprocessors for each program.
        features: In.
        block: What a share is a multiple of.
        most: Bounds what the second product reads of the first.
    """
    splits = max(1, min(free, most, features // SHARE))
    share = -(-features // (splits * block)) * block
    return -(-features // share), share


def _check(
    y: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, slots: torch.Tensor, ranks: torch.Tensor
) -> None:
    given = {"y": y, "x": x, "down": down, "up": up, "slots": slots, "ranks": ranks}
    if not (
        y.ndim == x.ndim == down.ndim == up.ndim == 3
        and (y.shape[:2], y.shape[2:], x.shape[2:]) == (x.shape[:2], up.shape[1:2], down.shape[2:])
        and (up.shape[:1], up.shape[2:]) == (down.shape[:1], down.shape[1:2])
        and (slots.shape, ranks.shape) == (x.shape[:1], down.shape[:1])
        and down.shape[1] % VECTOR == 0
    ):
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in given.items())
        wanted = f"[B, T, out], [B, T, in], [S, R, in], [S, out, R], [B], [S], R a multiple of {VECTOR}"
        raise ValueError(f"{shapes}; wanted: {wanted}")
    if not (
        (y.dtype, up.dtype, slots.dtype, ranks.dtype) == (x.dtype, down.dtype, torch.int32, torch.int32)
        and TYPES.keys() >= {x.dtype, down.dtype}
    ):
        types = ", ".join(f"{name} {tensor.dtype}" for name, tensor in given.items())
        raise ValueError(
            f"{types}; wanted: y as x, up as down, floating point of at most 32 bits, slots and ranks int32"
        )
    gaps = [name for name in ("y", "down", "up") if not given[name].is_contiguous()]
    if gaps:
        raise ValueError(f"{' and '.join(gaps)} not contiguous")


_op = register_op("grouped_lora", reference, launch, lambda *tensors: None, mutates=("y",))
