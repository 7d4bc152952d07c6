"""How GroupNorm's work is cut: nothing left out, nothing twice, enough programs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftdiffusion.kernels.configurations import ARCHITECTURES, CANDIDATES, configuration
from swiftdiffusion.kernels.group_norm_plan import MAX_SPLITS, plan_group_norm, power_of_two


@settings(max_examples=200)
@given(
    batch=st.integers(1, 8),
    groups=st.integers(1, 40),
    per_group=st.integers(1, 300),
    pixels=st.integers(1, 70_000),
    itemsize=st.sampled_from([2, 4]),
    channels_last=st.booleans(),
)
def test_every_channel_and_pixel_has_one_program(
    batch: int, groups: int, per_group: int, pixels: int, itemsize: int, channels_last: bool
) -> None:
    shape = (batch, groups * per_group, pixels)
    plan = plan_group_norm(shape, groups, itemsize, channels_last, configuration("group_norm_silu", 90), 132)
    assert (plan.blocks - 1) * plan.groups_per_block < groups <= plan.blocks * plan.groups_per_block
    assert plan.groups_per_block * per_group <= plan.block_channels == power_of_two(plan.block_channels)
    assert (plan.splits - 1) * plan.pixels_per_split < pixels <= plan.splits * plan.pixels_per_split
    assert plan.splits <= plan.most_splits <= MAX_SPLITS
    one = plan_group_norm((1, *shape[1:]), groups, itemsize, channels_last, configuration("group_norm_silu", 90), 132)
    assert (one.splits == 1, one.most_splits) == (plan.splits == 1, plan.most_splits), "compiled anew for a batch"
    assert plan.pixels_per_split % plan.block_pixels == 0


def test_sdxl_fills_an_h100() -> None:
    settings_ = configuration("group_norm_silu", 90)
    large = plan_group_norm((2, 320, 128 * 128), 32, 2, True, settings_, 132)
    assert (large.block_channels, large.groups_per_block) == (128, 12)
    places = settings_["programs_per_sm"] * 132
    assert 0.97 * places <= 2 * large.blocks * large.splits <= places  # all at a time: more of them took longer
    small_tiles = settings_ | {"tile": 4096, "programs_per_sm": 4}
    more = plan_group_norm((2, 320, 128 * 128), 32, 2, True, small_tiles, 132)
    assert 2 * more.blocks * more.splits >= 2 * 132
    small = plan_group_norm((2, 1280, 8 * 8), 32, 2, True, settings_, 132)
    assert small.splits == 1


def test_offsets_stay_in_32_bits() -> None:
    with pytest.raises(ValueError, match="32-bit"):
        plan_group_norm((1, 320, 2**27), 32, 2, True, configuration("group_norm_silu", 90), 132)


def test_every_architecture_has_its_configuration() -> None:
    for op, candidates in CANDIDATES.items():
        for architecture in ARCHITECTURES:
            known = configuration(op, architecture)
            assert any(known.items() >= candidate.items() for candidate in candidates), (op, architecture)
        assert configuration(op, 86) == configuration(op, 80)
        assert configuration(op, 120) == configuration(op, 100)
        assert configuration(op, 75) == configuration(op, 80)
