"""A kernel with everything that specialises it: what the ahead-of-time compiler takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
"""Floating-point type → its name in Triton's signatures."""


@dataclass(frozen=True)
class KernelSource:
    """One specialisation of a kernel.

    Attributes:
        function: The `triton.jit` function.
        types: Run-time parameter → Triton's type, such as `*fp16` or `i32`; pointers are promised to be aligned to 16
            bytes.
        constants: Every other parameter → its value.
        num_warps: Warps of a program.
        multiples_of_16: Integer parameters that are promised to be multiples of 16.
        fp_fusion: Whether products and sums may be contracted, which rounds once instead of twice.
    """

    function: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    multiples_of_16: frozenset[str] = frozenset()
    fp_fusion: bool = True
