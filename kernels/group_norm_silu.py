"""GroupNorm and SiLU as one op, with the time embedding's addition before them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from .configurations import configuration, multiprocessors
from .group_norm_plan import plan_group_norm, power_of_two
from .kernel_source import TYPES, KernelSource
from .memory_format import dense_format, is_channels_last
from .registration import register_op
from .triton_language import kernels_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .group_norm_plan import GroupNormPlan


def group_norm_silu(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-5,
    silu: bool = True,
    embedding: torch.Tensor | None = None,
) -> torch.Tensor:
    """silu(group_norm(x + embedding)), as `ResnetBlock2D` of diffusers has it around its second norm.

    On the CPU it is PyTorch's own operators, bit for bit. On a GPU everything between reading x and writing y is
    float32, so half-precision results differ from PyTorch's by the roundings that those do in between.

    Limited by memory: x is read twice and y written once, 3 · itemsize · numel bytes, of which the second read comes
    from L2 where x fits into it (SDXL's largest, [2, 320, 128, 128] in half precision, is 21 MB). PyTorch's three
    operators move 7 · itemsize · numel. One kernel launch for small images, two for large ones: see `group_norm_plan`.

    Args:
        x: [N, C, …], float16, bfloat16 or float32. Contiguous or, if four-dimensional, channels-last; anything else is
            copied to be contiguous.
        groups: Divides C.
        weight: [C], floating point.
        bias: [C], floating point.
        eps: Added to the variance.
        silu: Whether x · sigmoid(x) follows.
        embedding: [N, C], added to every pixel before the norm; None for nothing.

    Returns:
        Like x, in its memory format.

    Raises:
        ValueError: If shapes do not fit together.
        MissingTritonError: For CUDA tensors without the `triton` package.
    """
    if x.ndim < 3 or groups < 1 or x.shape[1] % groups:
        raise ValueError(f"x is {list(x.shape)} with {groups} groups; wanted: [N, C, …] with groups that divide C")
    if weight.shape != x.shape[1:2] or bias.shape != x.shape[1:2]:
        raise ValueError(f"weight {list(weight.shape)} and bias {list(bias.shape)}; wanted: [{x.shape[1]}]")
    if embedding is not None and embedding.shape != x.shape[:2]:
        raise ValueError(f"embedding is {list(embedding.shape)}; wanted: {list(x.shape[:2])}")
    return _op(x, weight, bias, embedding, groups, eps, silu)


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    embedding: torch.Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> torch.Tensor:
    """The op in PyTorch's operators; arguments as of `group_norm_silu`."""
    order = dense_format(x)
    if embedding is not None:
        x = x + embedding.reshape(*embedding.shape, *[1] * (x.ndim - 2))
    y = functional.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    return (functional.silu(y) if silu else y).contiguous(memory_format=order)


def launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    embedding: torch.Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> torch.Tensor:
    """The kernels, on a GPU or in Triton's interpreter; arguments as of `group_norm_silu`."""
    kernels = kernels_of("group_norm_silu")
    x = x.contiguous(memory_format=dense_format(x))
    y = torch.empty_like(x)
    if not x.numel():
        return y
    weight, bias = weight.contiguous(), bias.contiguous()
    embedding = None if embedding is None else embedding.contiguous()
    channels, pixels = x.shape[1], math.prod(x.shape[2:])
    channels_last = is_channels_last(x)
    settings = configuration("group_norm_silu", x.device)
    plan = plan_group_norm(
        (len(x), channels, pixels), groups, x.itemsize, channels_last, settings, multiprocessors(x.device)
    )
    lanes = _lanes(plan, channels // groups, channels_last)
    grid = (plan.blocks, len(x), plan.splits)
    after = {"EPSILON": eps, "SILU": silu, "num_warps": settings["num_warps"]}
    with torch.cuda.device_of(x):
        if plan.splits == 1:
            kernels.whole[grid[:2]](x, embedding, weight, bias, channels, pixels, y, **lanes, **after)
            return y
        partial = torch.empty((len(x), groups, plan.splits, 2), dtype=torch.float32, device=x.device)
        share = plan.pixels_per_split
        kernels.statistics[grid](
            x, embedding, channels, pixels, share, partial, **lanes, num_warps=settings["num_warps"]
        )
        kernels.normalise[grid](
            x, weight, bias, embedding, partial, channels, pixels, share, y,
            S=plan.most_splits, **lanes, **after,
        )  # fmt: skip
    return y


def sources(
    shape: tuple[int, int, int],
    groups: int,
    dtype: torch.dtype,
    architecture: int,
    channels_last: bool = True,
    eps: float = 1e-5,
    silu: bool = True,
    embedding: bool = False,
    settings: Mapping[str, int] | None = None,
) -> tuple[KernelSource, ...]:
    """What to compile ahead of time for one input: the single-launch kernel, or the two of the split one.

    Args:
        shape: N, C, pixels.
        groups: Divides C.
        dtype: Of every tensor.
        architecture: Such as 90.
        channels_last: Memory format of x.
        eps: Added to the variance.
        silu: Whether SiLU follows.
        embedding: Whether there is one.
        settings: Those of the configuration if None.

    Raises:
        MissingTritonError: Without the `triton` package.
    """
    kernels = kernels_of("group_norm_silu")
    _, channels, pixels = shape
    settings = settings or configuration("group_norm_silu", architecture)
    plan = plan_group_norm(shape, groups, dtype.itemsize, channels_last, settings, settings["multiprocessors"])
    pointer = f"*{TYPES[dtype]}"
    lanes = _lanes(plan, channels // groups, channels_last)
    after = {"EPSILON": eps, "SILU": silu}
    types = dict.fromkeys(("x", "weight", "bias"), pointer) | {"channels": "i32", "pixels": "i32", "y": pointer}
    if embedding:
        types["embedding"] = pointer
    else:
        lanes["embedding"] = None
    sizes = {"channels": channels, "pixels": pixels, "pixels_per_split": plan.pixels_per_split}
    even = frozenset(name for name, size in sizes.items() if size % 16 == 0)
    if plan.splits == 1:
        return (KernelSource(kernels.whole, types, lanes | after, settings["num_warps"], even - {"pixels_per_split"}),)
    more = {"pixels_per_split": "i32", "partial": "*fp32"}
    first = {name: of for name, of in types.items() if name not in ("weight", "bias", "y")}
    after["S"] = plan.most_splits
    return (
        KernelSource(kernels.statistics, first | more, lanes, settings["num_warps"], even),
        KernelSource(kernels.normalise, types | more, lanes | after, settings["num_warps"], even),
    )


def _lanes(plan: GroupNormPlan, group_channels: int, channels_last: bool) -> dict[str, Any]:
    return {
        "P": plan.block_pixels,
        "C": plan.block_channels,
        "G": power_of_two(plan.groups_per_block),
        "GROUPS": plan.groups_per_block,
        "WIDTH": group_channels,
        "CHANNELS_LAST": channels_last,
    }


def _fake(x: torch.Tensor, *others: object) -> torch.Tensor:
    return torch.empty_like(x, memory_format=dense_format(x))


_op = register_op("group_norm_silu", reference, launch, _fake)
