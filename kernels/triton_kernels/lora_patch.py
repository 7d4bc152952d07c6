"""W ← W0 + Σ scale · up · down over modules of any shapes, one program per tile of a weight."""

import triton
import triton.language as tl


@triton.jit
def _piece(
    pristine,
    factors,
    slot,
    terms,
    scales,
    first_row,
    first_column,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTORS: tl.constexpr,
):
    """A piece of the module that `slot` describes. VECTORS: its rows are whole 16-byte vectors."""
    rows = tl.load(slot + 4).to(tl.int32)
    columns = tl.load(slot + 5).to(tl.int32)
    if VECTORS:  # what a load gives carries no alignment: without these hints every access is of one element
        columns = tl.multiple_of(columns, 8)
    row = first_row + tl.arange(0, ROWS)
    column = first_column + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    offset = row[:, None] * columns + column[None, :]
    base = pristine + tl.multiple_of(tl.load(slot + 3), 8)
    total = tl.load(base + offset, mask=inside, other=0.0).to(tl.float32)
    for number in range(tl.load(slot + 6).to(tl.int32), tl.load(slot + 7).to(tl.int32)):
        term = terms + number * 4
        up = factors + tl.multiple_of(tl.load(term), 8)
        down = factors + tl.multiple_of(tl.load(term + 1), 8)
        rank = tl.multiple_of(tl.load(term + 2).to(tl.int32), 8)
        scale = tl.load(scales + number)
        for first in range(0, rank, RANK):
            inner = first + tl.arange(0, RANK)
            left = tl.load(
                up + row[:, None] * rank + inner[None, :],
                mask=(row < rows)[:, None] & (inner < rank)[None, :],
                other=0.0,
            )
            right = tl.load(
                down + inner[:, None] * columns + column[None, :],
                mask=(inner < rank)[:, None] & (column < columns)[None, :],
                other=0.0,
            )
            total += scale * tl.dot(left, right, input_precision=PRECISION)
    weight = tl.load(slot).to(tl.pointer_type(pristine.dtype.element_ty)) + offset
    if VECTORS:
        weight = tl.multiple_of(weight, [1, 16])
    tl.store(weight, total.to(pristine.dtype.element_ty), mask=inside)


@triton.jit
def lora_patch(
    pristine,
    factors,
    slots,
    terms,
    scales,
    tiles,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: tiles. The tables are those of `lora_tables`; `WIDTH` is the number of columns of `slots`.

    Rows that are not whole vectors (4 input channels, odd test models) take narrow pieces one after the other: at full
    width, their element-wise addresses would set the registers of the whole kernel.
    """
    number = tl.program_id(0)
    slot = slots + tl.load(tiles + number) * WIDTH
    tile = number - tl.load(slot + 8).to(tl.int32)
    across = tl.cdiv(tl.load(slot + 5).to(tl.int32), COLUMNS)
    row = tile // across * ROWS
    column = tile % across * COLUMNS
    if tl.load(slot + 9) == 1:
        _piece(pristine, factors, slot, terms, scales, row, column, ROWS, COLUMNS, RANK, PRECISION, True)
    else:
        for piece in range(0, COLUMNS, 16):
            _piece(pristine, factors, slot, terms, scales, row, column + piece, ROWS, 16, RANK, PRECISION, False)
