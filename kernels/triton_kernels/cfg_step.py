"""Guidance and sampler step in one pass."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["guided"])
def cfg_step(
    sample,
    conditional,
    unconditional,
    previous,
    coefficients,
    size,
    guided,
    next_sample,
    denoised,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: blocks of a row, rows; letters as in `step_coefficients`.

    For the CPU's bits its divisions are IEEE's, and it has to be compiled without contraction of products and sums.
    `size` is a row's elements, `guided` the number of rows with an unconditional half; no other of `unconditional` is
    read, nor of `previous` those of rows that do not use it.
    """
    row = tl.program_id(1)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < size
    start = row.to(tl.int64) * size
    latents = tl.load(sample + start + lane, mask=inside, other=0.0).to(tl.float32)
    output = tl.load(conditional + start + lane, mask=inside, other=0.0).to(tl.float32)
    of_row = coefficients + row * COLUMNS
    has_base = lane < tl.where(row < guided, size, 0)
    base = tl.load(unconditional + start + lane, mask=has_base, other=0.0).to(tl.float32)
    output = tl.where(has_base, base + tl.load(of_row) * (output - base), output)
    a, b, c, d = tl.load(of_row + 1), tl.load(of_row + 2), tl.load(of_row + 3), tl.load(of_row + 4)
    e, f, g, h = tl.load(of_row + 5), tl.load(of_row + 6), tl.load(of_row + 7), tl.load(of_row + 8)
    i, j, k = tl.load(of_row + 9), tl.load(of_row + 10), tl.load(of_row + 11)
    m, n = tl.load(of_row + 12), tl.load(of_row + 13)
    before = tl.load(previous + start + lane, mask=lane < tl.where(h != 0, size, 0), other=0.0)
    x0 = tl.div_rn(a * output + b * tl.div_rn(latents, c), d)
    direction = tl.div_rn(e * latents + f * output + g * x0 + h * before, i)
    value = j * latents + k * x0 + m * (n * direction)
    tl.store(next_sample + start + lane, value.to(next_sample.dtype.element_ty), mask=inside)
    tl.store(denoised + start + lane, x0, mask=inside)
