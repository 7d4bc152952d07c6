"""A residual addition and the LayerNorm after it as one op."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from .configurations import configuration
from .group_norm_plan import power_of_two
from .kernel_source import TYPES, KernelSource
from .registration import register_op
from .triton_language import kernels_of

if TYPE_CHECKING:
    from collections.abc import Mapping


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum x + residual, and layer_norm(x + residual), as `BasicTransformerBlock` of diffusers has them in turn.

    On the CPU it is PyTorch's own operators, bit for bit. On a GPU the sum is rounded as PyTorch's is, and the norm
    taken of the rounded sum in float32: the sum has PyTorch's bits, the norm differs by roundings.

    Limited by memory: both tensors are read and both written once, 4 · itemsize · numel bytes; PyTorch's two operators
    move 5.

    Args:
        x: [..., C], float16, bfloat16 or float32. Copied if it is not contiguous.
        residual: Like x.
        weight: [C], floating point.
        bias: [C], floating point.
        eps: Added to the variance.

    Returns:
        Sum and norm, like x, contiguous.

    Raises:
        ValueError: If shapes do not fit together.
        MissingTritonError: For CUDA tensors without the `triton` package.
    """
    if not x.ndim or x.shape != residual.shape:
        raise ValueError(f"x is {list(x.shape)}, residual {list(residual.shape)}; wanted: one shape [..., C]")
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(f"weight {list(weight.shape)} and bias {list(bias.shape)}; wanted: [{x.shape[-1]}]")
    return _op(x, residual, weight, bias, eps)


def reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op in PyTorch's operators; arguments as of `add_layer_norm`."""
    total = (x + residual).contiguous()
    return total, functional.layer_norm(total, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)


def launch(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel, on a GPU or in Triton's interpreter; arguments as of `add_layer_norm`."""
    kernels = kernels_of("add_layer_norm")
    x, residual, weight, bias = (tensor.contiguous() for tensor in (x, residual, weight, bias))
    total, y = torch.empty_like(x), torch.empty_like(x)
    if x.numel():
        width = x.shape[-1]
        lanes, warps = power_of_two(width), configuration("add_layer_norm", x.device)["num_warps"]
        with torch.cuda.device_of(x):
            kernels.add_layer_norm[(x.numel() // width,)](
                x, residual, weight, bias, width, total, y, LANES=lanes, EPSILON=eps, num_warps=warps
            )
    return total, y


def sources(
    width: int, dtype: torch.dtype, architecture: int, eps: float = 1e-5, settings: Mapping[str, int] | None = None
) -> tuple[KernelSource, ...]:
    """What to compile ahead of time for tensors [..., width].

    Args:
        width: C.
        dtype: Of every tensor.
        architecture: Such as 90.
        eps: Added to the variance.
        settings: Those of the configuration if None.

    Raises:
        MissingTritonError: Without the `triton` package.
    """
    kernels = kernels_of("add_layer_norm")
    settings = settings or configuration("add_layer_norm", architecture)
    names = ("x", "residual", "weight", "bias", "total", "y")
    types = dict.fromkeys(names, f"*{TYPES[dtype]}") | {"width": "i32"}
    even = frozenset({"width"} if width % 16 == 0 else ())
    constants = {"LANES": power_of_two(width), "EPSILON": eps}
    return (KernelSource(kernels.add_layer_norm, types, constants, settings["num_warps"], even),)


def _fake(x: torch.Tensor, *_others: object) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


_op = register_op("add_layer_norm", reference, launch, _fake)
