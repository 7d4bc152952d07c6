"""A bias of channels and a residual, added to what a convolution gave."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def bias_residual(
    x,
    bias,
    residual,
    rows,
    width,
    channels,
    y,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid: blocks of rows, blocks of columns; a row is a pixel's channels, or a channel's pixels."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None].to(tl.int64) * width + column[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if CHANNELS_LAST:
        value += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    else:
        value += tl.load(bias + row % channels, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)
