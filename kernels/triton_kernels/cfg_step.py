"""Guidance and sampler step in one pass."""

import triton
import triton.language as tl


@triton.jit
def cfg_step(
    sample,
    conditional,
    unconditional,
    previous,
    coefficients,
    size,
    next_sample,
    denoised,
    BLOCK: tl.constexpr,
):
    """Grid: blocks of a row, rows. `unconditional` and `previous` may be None; `size` is a row's elements."""
    row = tl.program_id(1)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < size
    start = row.to(tl.int64) * size
    latents = tl.load(sample + start + lane, mask=inside, other=0.0).to(tl.float32)
    output = tl.load(conditional + start + lane, mask=inside, other=0.0).to(tl.float32)
    of_row = coefficients + row * 6
    if unconditional is not None:
        base = tl.load(unconditional + start + lane, mask=inside, other=0.0).to(tl.float32)
        output = base + tl.load(of_row) * (output - base)
    value = tl.load(of_row + 3) * latents + tl.load(of_row + 4) * output
    if previous is not None:
        value += tl.load(of_row + 5) * tl.load(previous + start + lane, mask=inside, other=0.0)
    tl.store(next_sample + start + lane, value.to(next_sample.dtype.element_ty), mask=inside)
    tl.store(denoised + start + lane, tl.load(of_row + 1) * latents + tl.load(of_row + 2) * output, mask=inside)
