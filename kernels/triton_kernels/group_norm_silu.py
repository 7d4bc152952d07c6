"""GroupNorm with an optional addition before it and an optional SiLU after it.

Statistics are Welford's, in float32: every lane keeps mean and sum of squared deviations of the pixels that it sees;
lanes, channels and splits are merged by Chan's formula. Nothing is ever a difference of two large sums.

Parameters come as TensorRT's ahead-of-time plugins want them: input pointers, 32-bit integers, output pointers. Lanes
are `P` pixels by `C` channels, of which the first `GROUPS · WIDTH` hold whole groups of `WIDTH` channels. An integer
that is 1 reaches a kernel as a constant without methods: hence `tl.cast`.
"""

import triton
import triton.language as tl


@triton.jit
def _channels(embedding, channels, C: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """This program's first channel, which lanes hold one [C], and what is added to each before the norm [C]."""
    first = tl.program_id(0) * (GROUPS * WIDTH)
    lane = tl.arange(0, C)
    held = (lane < GROUPS * WIDTH) & (first + lane < channels)
    shift = tl.zeros([C], tl.float32)
    if embedding is not None:
        row = embedding + tl.program_id(1) * channels + first
        shift = tl.load(row + lane, mask=held, other=0.0).to(tl.float32)
    return first, held, shift


@triton.jit
def _offsets(first, pixel, channels, pixels, P: tl.constexpr, C: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Where the tile at `pixel` begins (64-bit), and its lanes from there [P, C]."""
    lane = tl.arange(0, C)[None, :]
    image = tl.program_id(1).to(tl.int64) * channels * pixels
    if CHANNELS_LAST:
        start = image + tl.cast(channels, tl.int64) * pixel + first
        offset = tl.arange(0, P)[:, None] * channels + lane
    else:
        start = image + tl.cast(pixels, tl.int64) * first + pixel
        offset = tl.arange(0, P)[:, None] + lane * pixels
    return start, offset


@triton.jit
def _belongs(C: tl.constexpr, G: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Which lane is of which group [C, G]."""
    lane = tl.arange(0, C)
    return (lane // WIDTH)[:, None] == tl.arange(0, G)[None, :]


@triton.jit
def _statistics(
    x,
    embedding,
    channels,
    pixels,
    begin,
    end,
    P: tl.constexpr,
    C: tl.constexpr,
    G: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Mean and sum of squared deviations [G] of this program's groups over the pixels from `begin` to `end`."""
    first, held, shift = _channels(embedding, channels, C, GROUPS, WIDTH)
    mean = tl.zeros([P, C], tl.float32)
    deviations = tl.zeros([P, C], tl.float32)
    tiles = 0.0
    for pixel in range(begin, end, P):
        start, offset = _offsets(first, pixel, channels, pixels, P, C, CHANNELS_LAST)
        valid = (pixel + tl.arange(0, P) < pixels)[:, None] & held[None, :]
        value = tl.load(x + start + offset, mask=valid, other=0.0).to(tl.float32) + shift[None, :]
        tiles += 1.0
        delta = tl.where(valid, value - mean, 0.0)
        mean += delta * (1.0 / tiles)
        deviations += tl.where(valid, delta * (value - mean), 0.0)

    seen = tl.maximum((end - begin - tl.arange(0, P) + P - 1) // P, 0).to(tl.float32)[:, None]
    count = tl.cast(end - begin, tl.float32)
    channel_mean = tl.sum(mean * seen, axis=0) / count
    apart = mean - channel_mean[None, :]
    channel_deviations = tl.sum(deviations + seen * apart * apart, axis=0)

    belongs = _belongs(C, G, GROUPS, WIDTH) & held[:, None]
    group_mean = tl.sum(tl.where(belongs, channel_mean[:, None], 0.0), axis=0) / WIDTH
    apart = channel_mean[:, None] - group_mean[None, :]
    spread = channel_deviations[:, None] + count * apart * apart
    return group_mean, tl.sum(tl.where(belongs, spread, 0.0), axis=0)


@triton.jit
def _normalise(
    x,
    weight,
    bias,
    embedding,
    channels,
    pixels,
    begin,
    end,
    y,
    group_mean,
    group_variance,
    P: tl.constexpr,
    C: tl.constexpr,
    G: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EPSILON: tl.constexpr,
    SILU: tl.constexpr,
):
    """Writes the pixels from `begin` to `end` of this program's channels, given their groups' statistics [G]."""
    first, held, shift = _channels(embedding, channels, C, GROUPS, WIDTH)
    belongs = _belongs(C, G, GROUPS, WIDTH)
    mean = tl.sum(tl.where(belongs, group_mean[None, :], 0.0), axis=1)
    scale = tl.sum(tl.where(belongs, tl.rsqrt(group_variance + EPSILON)[None, :], 0.0), axis=1)
    lane = first + tl.arange(0, C)
    scale *= tl.load(weight + lane, mask=held, other=0.0).to(tl.float32)
    add = tl.load(bias + lane, mask=held, other=0.0).to(tl.float32)
    for pixel in range(begin, end, P):
        start, offset = _offsets(first, pixel, channels, pixels, P, C, CHANNELS_LAST)
        valid = (pixel + tl.arange(0, P) < pixels)[:, None] & held[None, :]
        value = tl.load(x + start + offset, mask=valid, other=0.0).to(tl.float32) + shift[None, :]
        value = (value - mean[None, :]) * scale[None, :] + add[None, :]
        if SILU:
            value = value * tl.sigmoid(value)
        tl.store(y + start + offset, value.to(y.dtype.element_ty), mask=valid)


@triton.jit
def whole(
    x,
    embedding,
    weight,
    bias,
    channels,
    pixels,
    y,
    P: tl.constexpr,
    C: tl.constexpr,
    G: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EPSILON: tl.constexpr,
    SILU: tl.constexpr,
):
    """Everything in one launch. Grid: blocks of channels, N."""
    mean, deviations = _statistics(x, embedding, channels, pixels, 0, pixels, P, C, G, GROUPS, WIDTH, CHANNELS_LAST)
    variance = deviations / (tl.cast(pixels, tl.float32) * WIDTH)
    _normalise(
        x, weight, bias, embedding, channels, pixels, 0, pixels, y, mean, variance,
        P, C, G, GROUPS, WIDTH, CHANNELS_LAST, EPSILON, SILU,
    )  # fmt: skip


@triton.jit
def statistics(
    x,
    embedding,
    channels,
    pixels,
    pixels_per_split,
    partial,
    P: tl.constexpr,
    C: tl.constexpr,
    G: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """First of two launches: `partial` [N, groups, splits, 2], mean and squared deviations of each split.

    Grid: blocks of channels, N, splits.
    """
    split = tl.program_id(2)
    begin = split * pixels_per_split
    end = tl.minimum(begin + pixels_per_split, pixels)
    mean, deviations = _statistics(x, embedding, channels, pixels, begin, end, P, C, G, GROUPS, WIDTH, CHANNELS_LAST)
    group = tl.program_id(0) * GROUPS + tl.arange(0, G)
    groups = channels // WIDTH
    valid = (tl.arange(0, G) < GROUPS) & (group < groups)
    place = partial + ((tl.program_id(1) * groups + group) * tl.num_programs(2) + split) * 2
    tl.store(place, mean, mask=valid)
    tl.store(place + 1, deviations, mask=valid)


@triton.jit
def normalise(
    x,
    weight,
    bias,
    embedding,
    partial,
    channels,
    pixels,
    pixels_per_split,
    y,
    S: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
    G: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EPSILON: tl.constexpr,
    SILU: tl.constexpr,
):
    """Second of two launches: merges the splits' statistics, `S` or fewer of them. Grid as of the first."""
    splits = tl.num_programs(2)
    group = tl.program_id(0) * GROUPS + tl.arange(0, G)
    groups = channels // WIDTH
    split = tl.arange(0, S)
    valid = ((tl.arange(0, G) < GROUPS) & (group < groups))[:, None] & (split < splits)[None, :]
    place = partial + ((tl.program_id(1) * groups + group)[:, None] * splits + split[None, :]) * 2
    means = tl.load(place, mask=valid, other=0.0)
    deviations = tl.load(place + 1, mask=valid, other=0.0)
    count = tl.minimum(tl.maximum(pixels - split * pixels_per_split, 0), pixels_per_split).to(tl.float32)[None, :]
    total = tl.cast(pixels, tl.float32)
    mean = tl.sum(means * count, axis=1) / total
    apart = means - mean[:, None]
    spread = tl.where(valid, deviations + WIDTH * count * apart * apart, 0.0)
    variance = tl.sum(spread, axis=1) / (total * WIDTH)
    begin = tl.program_id(2) * pixels_per_split
    end = tl.minimum(begin + pixels_per_split, pixels)
    _normalise(
        x, weight, bias, embedding, channels, pixels, begin, end, y, mean, variance,
        P, C, G, GROUPS, WIDTH, CHANNELS_LAST, EPSILON, SILU,
    )  # fmt: skip
