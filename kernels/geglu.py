"""GEGLU's activation as one op, with the projection's bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from .configurations import configuration
from .kernel_source import TYPES, KernelSource
from .registration import register_op
from .triton_language import kernels_of

if TYPE_CHECKING:
    from collections.abc import Mapping


def geglu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Hidden · gelu(gate) with hidden, gate = (x + bias).chunk(2, -1), as `GEGLU` of diffusers; the exact gelu, by erf.

    On the CPU it is PyTorch's own operators, bit for bit. On a GPU everything between reading x and writing y is
    float32.

    Limited by memory: x is read once and y written once, 3 · itemsize · y.numel() bytes; PyTorch's two operators move
    5 · itemsize · y.numel(), and a bias that is not part of the matrix product 4 more.

    Args:
        x: [..., 2 · D], what the projection gives; float16, bfloat16 or float32. Copied if it is not contiguous.
        bias: [2 · D], the projection's, if the projection was done without it.

    Returns:
        [..., D], of x's type, contiguous.

    Raises:
        ValueError: If the last dimension is odd, or the bias does not fit.
        MissingTritonError: For CUDA tensors without the `triton` package.
    """
    if not x.ndim or x.shape[-1] % 2:
        raise ValueError(f"x is {list(x.shape)}; wanted: an even last dimension")
    if bias is not None and bias.shape != x.shape[-1:]:
        raise ValueError(f"bias is {list(bias.shape)}; wanted: [{x.shape[-1]}]")
    return _op(x, bias)


def reference(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The op in PyTorch's operators; arguments as of `geglu`."""
    if bias is not None:
        x = x + bias.to(x.dtype)
    hidden, gate = x.chunk(2, dim=-1)
    return (hidden * functional.gelu(gate)).contiguous()


def launch(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The kernel, on a GPU or in Triton's interpreter; arguments as of `geglu`."""
    kernels = kernels_of("geglu")
    x = x.contiguous()
    bias = None if bias is None else bias.contiguous()
    width = x.shape[-1] // 2
    y = x.new_empty((*x.shape[:-1], width))
    if not y.numel():
        return y
    rows = y.numel() // width
    settings = configuration("geglu", x.device)
    block = settings["block_rows"], settings["block_columns"]
    grid = -(-rows // block[0]), -(-width // block[1])
    with torch.cuda.device_of(x):
        kernels.geglu[grid](x, bias, rows, width, y, ROWS=block[0], COLUMNS=block[1], num_warps=settings["num_warps"])
    return y


def sources(
    width: int, dtype: torch.dtype, architecture: int, bias: bool = False, settings: Mapping[str, int] | None = None
) -> tuple[KernelSource, ...]:
    """What to compile ahead of time for outputs [rows, width].

    Args:
        width: D.
        dtype: Of every tensor.
        architecture: Such as 90.
        bias: Whether there is one.
        settings: Those of the configuration if None.

    Raises:
        MissingTritonError: Without the `triton` package.
    """
    kernels = kernels_of("geglu")
    settings = settings or configuration("geglu", architecture)
    pointer = f"*{TYPES[dtype]}"
    types = {"x": pointer, "rows": "i32", "width": "i32", "y": pointer}
    constants: dict[str, int | None] = {"ROWS": settings["block_rows"], "COLUMNS": settings["block_columns"]}
    if bias:
        types["bias"] = pointer
    else:
        constants["bias"] = None
    even = frozenset({"width"} if width % 16 == 0 else ())
    return (KernelSource(kernels.geglu, types, constants, settings["num_warps"], even),)


_op = register_op("geglu", reference, launch, lambda x, bias: x.new_empty((*x.shape[:-1], x.shape[-1] // 2)))
