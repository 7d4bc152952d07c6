"""a · gelu(b) of a projection's two halves, with the exact gelu."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def geglu(x, bias, rows, width, y, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Grid: blocks of rows, blocks of the output's columns. x [rows, 2 · width], bias [2 · width] or None."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    start = x + row[:, None].to(tl.int64) * (2 * width) + column[None, :]
    hidden = tl.load(start, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(start + width, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        hidden += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
        gate += tl.load(bias + width + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    value = hidden * (0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)))
    tl.store(y + row[:, None].to(tl.int64) * width + column[None, :], value.to(y.dtype.element_ty), mask=inside)
