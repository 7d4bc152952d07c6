"""A convolution's bias and the residual addition after it as one op."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from .configurations import configuration
from .kernel_source import TYPES, KernelSource
from .memory_format import dense_format, is_channels_last
from .registration import register_op
from .triton_language import kernels_of

if TYPE_CHECKING:
    from collections.abc import Mapping


def bias_residual(x: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Residual + (x + bias), as `ResnetBlock2D` of diffusers ends, its last convolution done without the bias.

    cuDNN's convolutions have none: PyTorch adds it in a pass of its own. On a GPU the sums are float32.

    Limited by memory: 3 · itemsize · numel bytes; PyTorch's two operators move 5.

    Args:
        x: [N, C, …], float16, bfloat16 or float32. Contiguous or, if four-dimensional, channels-last; anything else is
            copied to be contiguous.
        bias: [C], floating point.
        residual: Like x; copied to have its layout, if it has another.

    Returns:
        Like x, in its memory format.

    Raises:
        ValueError: If shapes do not fit together.
        MissingTritonError: For CUDA tensors without the `triton` package.
    """
    if x.ndim < 2 or x.shape != residual.shape:
        raise ValueError(f"x is {list(x.shape)}, residual {list(residual.shape)}; wanted: one shape [N, C, …]")
    if bias.shape != x.shape[1:2]:
        raise ValueError(f"bias is {list(bias.shape)}; wanted: [{x.shape[1]}]")
    return _op(x, bias, residual)


def reference(x: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """The op in PyTorch's operators; arguments as of `bias_residual`."""
    added = x + bias.to(x.dtype).reshape(-1, *[1] * (x.ndim - 2))
    return (residual + added).contiguous(memory_format=dense_format(x))


def launch(x: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """The kernel, on a GPU or in Triton's interpreter; arguments as of `bias_residual`."""
    kernels = kernels_of("bias_residual")
    order = dense_format(x)
    x, residual = x.contiguous(memory_format=order), residual.contiguous(memory_format=order)
    y = torch.empty_like(x)
    if not x.numel():
        return y
    rows, width = _matrix(x.shape, channels_last=is_channels_last(x))
    settings = configuration("bias_residual", x.device)
    block = settings["block_rows"], settings["block_columns"]
    grid = -(-rows // block[0]), -(-width // block[1])
    with torch.cuda.device_of(x):
        kernels.bias_residual[grid](
            x, bias.contiguous(), residual, rows, width, x.shape[1], y,
            CHANNELS_LAST=is_channels_last(x), ROWS=block[0], COLUMNS=block[1], num_warps=settings["num_warps"],
        )  # fmt: skip
    return y


def sources(
    channels: int,
    pixels: int,
    dtype: torch.dtype,
    architecture: int,
    channels_last: bool = True,
    settings: Mapping[str, int] | None = None,
) -> tuple[KernelSource, ...]:
    """What to compile ahead of time for tensors [N, channels, pixels].

    Args:
        channels: C.
        pixels: Of a picture.
        dtype: Of every tensor.
        architecture: Such as 90.
        channels_last: Memory format of x.
        settings: Those of the configuration if None.

    Raises:
        MissingTritonError: Without the `triton` package.
    """
    kernels = kernels_of("bias_residual")
    settings = settings or configuration("bias_residual", architecture)
    types = dict.fromkeys(("x", "bias", "residual", "y"), f"*{TYPES[dtype]}")
    types |= {"rows": "i32", "width": "i32", "channels": "i32"}
    _, width = _matrix((1, channels, pixels), channels_last=channels_last)
    even = frozenset(name for name, size in {"width": width, "channels": channels}.items() if size % 16 == 0)
    constants = {
        "CHANNELS_LAST": channels_last,
        "ROWS": settings["block_rows"],
        "COLUMNS": settings["block_columns"],
    }
    return (KernelSource(kernels.bias_residual, types, constants, settings["num_warps"], even),)


def _matrix(shape: tuple[int, ...], channels_last: bool) -> tuple[int, int]:
    """Rows and columns of a tensor [N, C, …] as it lies in memory: pixels by channels, or the reverse."""
    images, channels, pixels = shape[0], shape[1], math.prod(shape[2:])
    return (images * pixels, channels) if channels_last else (images * channels, pixels)


_op = register_op(
    "bias_residual",
    reference,
    launch,
    lambda x, bias, residual: torch.empty_like(x, memory_format=dense_format(x)),
)
