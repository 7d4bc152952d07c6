"""y += (x · downᵀ) · upᵀ of rows that have different LoRA sets, in two launches.

The slot of a row and the rank of a slot are read here, so that one captured graph serves any mixture. Ranks are rounded
up to whole vectors, of which the padding is zeros. Products are of the wider of both tensors' types; sums are float32.
"""

import triton
import triton.language as tl


@triton.jit
def _slot(slots, ranks):
    """This row's slot (64-bit) and how much of the slot's rank there is; 0 for a row without LoRAs."""
    slot = tl.load(slots + tl.program_id(2))
    rank = tl.load(ranks + slot, mask=slot >= 0, other=0)
    return slot.to(tl.int64), tl.multiple_of((rank + 15) // 16 * 16, 16)


@triton.jit
def shrink(
    x,
    down,
    slots,
    ranks,
    tokens,
    features,
    bucket,
    share,
    low,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
    RANK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """First of two launches: `low` [splits, rows, tokens, bucket], x · downᵀ over each split's `share` of the features.

    Grid: blocks of tokens and, side by side since they share x, of the rank; splits; rows.
    """
    slot, rank = _slot(slots, ranks)
    rank_blocks = tl.cdiv(bucket, RANK)
    first_rank = tl.program_id(0) % rank_blocks * RANK
    if first_rank < rank:
        work: tl.constexpr = x.dtype.element_ty if x.dtype == down.dtype else tl.float32
        first_token = tl.program_id(0) // rank_blocks * TOKENS
        lane, inner = tl.arange(0, TOKENS), first_rank + tl.arange(0, RANK)
        valid = first_token + lane < tokens
        place = tl.program_id(2).to(tl.int64) * tokens + first_token
        of_token = x + place * features
        of_slot = down + slot * bucket * features
        begin = tl.program_id(1) * share
        total = tl.zeros([TOKENS, RANK], tl.float32)
        for first in range(begin, tl.minimum(begin + share, features), FEATURES):
            feature = first + tl.arange(0, FEATURES)
            left = tl.load(
                of_token + (lane[:, None] * features + feature[None, :]),
                mask=valid[:, None] & (feature < features)[None, :],
                other=0.0,
            )
            right = tl.load(
                of_slot + (inner[None, :] * features + feature[:, None]),
                mask=(feature < features)[:, None] & (inner < rank)[None, :],
                other=0.0,
            )
            total = tl.dot(left.to(work), right.to(work), total, input_precision=PRECISION)
        place += tl.program_id(1).to(tl.int64) * tl.num_programs(2) * tokens
        tl.store(
            low + place * bucket + (lane[:, None] * bucket + inner[None, :]),
            total.to(low.dtype.element_ty),
            mask=valid[:, None] & (inner < rank)[None, :],
        )


@triton.jit(do_not_specialize=["splits"])
def expand(
    low,
    up,
    slots,
    ranks,
    tokens,
    width,
    bucket,
    splits,
    y,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Second of two launches: y [rows, tokens, width] += low · upᵀ, with the splits of `low` added up.

    Grid: blocks of columns, blocks of tokens, rows.
    """
    slot, rank = _slot(slots, ranks)
    if rank > 0:
        work: tl.constexpr = y.dtype.element_ty if y.dtype == up.dtype else tl.float32
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        first_token, lane = tl.program_id(1) * TOKENS, tl.arange(0, TOKENS)
        valid = first_token + lane < tokens
        place = tl.program_id(2).to(tl.int64) * tokens + first_token
        apart = tl.num_programs(2).to(tl.int64) * tokens * bucket
        target = y + place * width + (lane[:, None] * width + column[None, :])
        inside = valid[:, None] & (column < width)[None, :]
        value = tl.load(target, mask=inside, other=0.0)
        of_slot = up + slot * width * bucket
        total = tl.zeros([TOKENS, COLUMNS], tl.float32)
        for first in tl.range(0, rank, RANK, num_stages=1):
            inner = first + tl.arange(0, RANK)
            part = low + place * bucket
            left = tl.zeros([TOKENS, RANK], tl.float32)
            for _ in tl.range(0, splits, num_stages=1):
                offset = lane[:, None] * bucket + inner[None, :]
                left += tl.load(part + offset, mask=valid[:, None] & (inner < rank)[None, :], other=0.0).to(tl.float32)
                part += apart
            right = tl.load(
                of_slot + (column[None, :] * bucket + inner[:, None]),
                mask=(inner < rank)[:, None] & (column < width)[None, :],
                other=0.0,
            )
            total = tl.dot(left.to(work), right.to(work), total, input_precision=PRECISION)
        tl.store(target, (value.to(tl.float32) + total).to(y.dtype.element_ty), mask=inside)
