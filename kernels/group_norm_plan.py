"""How GroupNorm's work is cut into programs. Pure arithmetic, shared by the launcher and the ahead-of-time exporters.

A program owns a block of channels that holds whole groups, and a run of pixels. Groups are rarely powers of two wide
(SDXL: 10, 20, 30, 40, 60, 80 channels), so several of them share a block that is: twelve groups of 10 fill 120 lanes of
128, and 120 channels are whole 16-byte vectors of a channels-last row.

With one program for all pixels of a block, SDXL's first level at 1024² (128 · 128 pixels, 320 channels, batch 2) would
be 6 programs for 132 multiprocessors. Then the pixels are split: one kernel writes the statistics of every (block,
split), a second combines those of its groups, which is a few kilobytes from L2, and normalises. Small images stay with
one program per block and one launch: where a block's pixels are fewer bytes than `one_program_bytes`, another launch
would cost more than the multiprocessors that it would bring in.

How many images there are decides how many splits, and nothing that a kernel is compiled for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_SPLITS = 256
"""Bounds what each normalising program reads of the others' statistics."""

MAX_ELEMENTS = 2**31 - 1
"""Offsets inside a block of channels are 32-bit."""


@dataclass(frozen=True)
class GroupNormPlan:
    """One launch's geometry.

    Attributes:
        block_channels: Lanes of a program along channels, a power of two.
        groups_per_block: Whole groups in them.
        blocks: Blocks of channels.
        block_pixels: Lanes along pixels, a power of two.
        pixels_per_split: Pixels of one program; a multiple of `block_pixels`.
        splits: Programs along pixels; 1 is the single-launch kernel.
        most_splits: Of any number of such images, a power of two.
    """

    block_channels: int
    groups_per_block: int
    blocks: int
    block_pixels: int
    pixels_per_split: int
    splits: int
    most_splits: int


def plan_group_norm(
    shape: tuple[int, int, int],
    groups: int,
    itemsize: int,
    channels_last: bool,
    settings: Mapping[str, int],
    multiprocessors: int,
) -> GroupNormPlan:
    """The geometry for one input.

    Args:
        shape: N, C, pixels.
        groups: Divides C.
        itemsize: Bytes of an element.
        channels_last: Whether channels are the innermost dimension.
        settings: `tile`, `programs_per_sm`, `one_program_bytes` of the configuration.
        multiprocessors: Of the device.

    Raises:
        ValueError: If a block of channels has 2³¹ elements or more.
    """
    batch, channels, pixels = shape
    per_group = channels // groups
    block_channels, groups_per_block = _channel_block(groups, per_group, itemsize, channels_last)
    blocks = _divide(groups, groups_per_block)
    if block_channels * max(pixels, 1) > MAX_ELEMENTS:
        raise ValueError(f"{block_channels} channels of {pixels} pixels are more than 32-bit offsets reach")
    block_pixels = min(max(1, settings["tile"] // block_channels), power_of_two(pixels))
    splits = most = 1
    if groups_per_block * per_group * pixels * itemsize > settings["one_program_bytes"]:
        programs = settings["programs_per_sm"] * multiprocessors
        most = max(1, min(max(2, _divide(programs, blocks)), MAX_SPLITS, pixels // (2 * block_pixels)))
        splits = min(most, max(2, _divide(programs, max(1, batch * blocks))))
    pixels_per_split = _divide(_divide(max(pixels, 1), splits), block_pixels) * block_pixels
    return GroupNormPlan(
        block_channels,
        groups_per_block,
        blocks,
        block_pixels,
        pixels_per_split,
        max(1, _divide(pixels, pixels_per_split)),
        power_of_two(most),
    )


def power_of_two(number: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << max(0, number - 1).bit_length()


def _channel_block(groups: int, per_group: int, itemsize: int, channels_last: bool) -> tuple[int, int]:
    """Lanes and groups of a block: fewest idle lanes, whole 16-byte vectors of a channels-last row where possible."""
    vector = 16 // itemsize if channels_last else 1
    best: tuple[tuple[bool, float, int], int, int] | None = None
    for lanes in (64, 128) if channels_last else (16, 32, 64):
        for count in range(1, min(lanes // per_group, groups) + 1):
            aligned = count * per_group % vector == 0 or count == groups
            used = groups * per_group / (_divide(groups, count) * lanes)
            rank = (aligned, used, -lanes)
            if best is None or rank > best[0]:
                best = rank, lanes, count
    return (power_of_two(per_group), 1) if best is None else best[1:]


def _divide(number: int, by: int) -> int:
    """Rounded up."""
    return -(-number // by)
