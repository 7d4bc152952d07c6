"""Where a part of a picture is painted, and how pictures and masks come to another size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.clients.gateway.webui_masks import fitted, surroundings


@pytest.mark.parametrize(
    ("box", "padding", "size", "place"),
    [
        ((10, 20, 30, 40), 0, (64, 64), (10, 20, 30, 40)),
        ((10, 20, 30, 40), 5, (64, 64), (5, 15, 35, 45)),
        ((10, 20, 30, 40), 99, (96, 64), (0, 0, 96, 64)),
        ((10, 20, 30, 30), 0, (64, 64), (10, 15, 30, 35)),
        ((0, 0, 40, 10), 0, (64, 64), (0, 0, 40, 40)),
        ((86, 20, 96, 50), 0, (64, 64), (66, 20, 96, 50)),
        ((0, 10, 96, 12), 0, (64, 64), (0, 0, 96, 64)),
    ],
)
def test_a_part_has_the_new_picture_s_proportions_where_there_is_room(
    box: tuple[int, ...], padding: int, size: tuple[int, int], place: tuple[int, ...]
) -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    assert surroundings(mask, padding, *size) == place


SIDES = st.integers(1, 60)


@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.integers(0, 80), st.data())
def test_any_part_holds_the_mask_and_lies_within(
    shape: tuple[int, int], size: tuple[int, int], padding: int, data: st.DataObject
) -> None:
    mask = np.zeros(shape, np.uint8)
    assert surroundings(mask, padding, *size) is None
    for _ in range(2):
        mask[data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))] = 255
    left, top, right, bottom = surroundings(mask, padding, *size) or (0, 0, 0, 0)
    assert 0 <= left < right <= shape[1] and 0 <= top < bottom <= shape[0]
    assert mask[top:bottom, left:right].sum() == mask.astype(int).sum()


def test_the_three_ways_to_another_size() -> None:
    wide = np.zeros((32, 64), np.uint8)
    wide[:, :32] = 255
    assert fitted(wide, 0, 32, 64) is wide
    assert (fitted(wide, 0, 32, 32)[:, :12] == 255).all()
    assert (fitted(wide, 1, 32, 32)[:, :12] == 255).all()
    filled = fitted(wide, 2, 64, 64)
    assert (filled[0, :28] == 255).all() and not filled[0, 36:].any(), "goes on as its edge is"
    assert fitted(np.zeros((5, 64, 3), np.uint8), 2, 64, 8).shape == (64, 8, 3)
