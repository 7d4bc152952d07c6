"""Rows as e4m3 values and their scales."""

import triton
import triton.language as tl


@triton.jit
def quantise_rows(x, width, values, scales, LANES: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr):
    """Grid: rows of `width` values. Divisions are IEEE's, for the CPU's bits."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    inside = lane < width
    value = tl.load(x + row * width + lane, mask=inside, other=0.0).to(tl.float32)
    of_row = tl.maximum(tl.max(tl.abs(value), axis=0), SMALLEST)
    value *= tl.div_rn(tl.full((), LARGEST, tl.float32), of_row)
    tl.store(values + row * width + lane, value.to(values.dtype.element_ty), mask=inside)
    tl.store(scales + row, tl.div_rn(of_row, tl.full((), LARGEST, tl.float32)))
