"""Rows as 8-bit floats of type e4m3, each with a scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .configurations import configuration
from .group_norm_plan import power_of_two
from .kernel_source import TYPES, KernelSource
from .registration import register_op
from .triton_language import kernels_of

if TYPE_CHECKING:
    from collections.abc import Mapping

E4M3 = torch.float8_e4m3fn
LARGEST, SMALLEST = 448.0, 2.0**-100
"""The largest value of e4m3; what a row's largest magnitude counts as at least, so that a row of zeros has a scale."""


def quantise_rows(
    x: torch.Tensor, out: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and scales with x ≈ values · scales[..., None], where scales are a row's largest magnitude / 448.

    Values are x · (448 / largest magnitude), in float32, rounded to nearest even: the same bits on a GPU and on the
    CPU.

    Limited by memory: x is read once, and a byte is written for each of its elements.

    Args:
        x: [..., C], float16, bfloat16 or float32. Copied if it is not contiguous.
        out: What is overwritten, as it is given back; None for new memory.

    Returns:
        Values [..., C], `torch.float8_e4m3fn`, and scales [...], float32; contiguous.

    Raises:
        ValueError: If `out` does not fit.
        MissingTritonError: For CUDA tensors without the `triton` package.
    """
    values, scales = out or (x.new_empty(x.shape, dtype=E4M3), x.new_empty(x.shape[:-1], dtype=torch.float32))
    fits = values.shape == x.shape and values.dtype == E4M3 and scales.shape == x.shape[:-1]
    if not (fits and scales.dtype == torch.float32 and values.is_contiguous() and scales.is_contiguous()):
        raise ValueError(
            f"values are {list(values.shape)} of {values.dtype}, scales {list(scales.shape)} of {scales.dtype}; "
            f"wanted: {list(x.shape)} of e4m3 and {list(x.shape[:-1])} of float32, contiguous"
        )
    _op(x, values, scales)
    return values, scales


def reference(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> None:
    """The op in PyTorch's operators; arguments as of `quantise_rows`."""
    of_rows = x.abs().amax(-1).float().clamp_min(SMALLEST)
    values.copy_(x.float() * (LARGEST / of_rows)[..., None])
    scales.copy_(of_rows / LARGEST)


def launch(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> None:
    """The kernel, on a GPU or in Triton's interpreter; arguments as of `quantise_rows`."""
    kernels = kernels_of("quantise_rows")
    x = x.contiguous()
    if x.numel():
        width = x.shape[-1]
        lanes, warps = power_of_two(width), configuration("quantise_rows", x.device)["num_warps"]
        with torch.cuda.device_of(x):
            kernels.quantise_rows[(x.numel() // width,)](
                x, width, values, scales, LANES=lanes, LARGEST=LARGEST, SMALLEST=SMALLEST, num_warps=warps
            )


def sources(
    width: int, dtype: torch.dtype, architecture: int, settings: Mapping[str, int] | None = None
) -> tuple[KernelSource, ...]:
    """What to compile ahead of time for rows [..., width].

    Args:
        width: C.
        dtype: Of x.
        architecture: Such as 90; from 89 on, where e4m3 begins.
        settings: Those of the configuration if None.

    Raises:
        MissingTritonError: Without the `triton` package.
    """
    kernels = kernels_of("quantise_rows")
    settings = settings or configuration("quantise_rows", architecture)
    types = {"x": f"*{TYPES[dtype]}", "width": "i32", "values": "*fp8e4nv", "scales": "*fp32"}
    even = frozenset({"width"} if width % 16 == 0 else ())
    constants = {"LANES": power_of_two(width), "LARGEST": LARGEST, "SMALLEST": SMALLEST}
    return (KernelSource(kernels.quantise_rows, types, constants, settings["num_warps"], even),)


_op = register_op("quantise_rows", reference, launch, lambda *_: None, mutates=("values", "scales"))
