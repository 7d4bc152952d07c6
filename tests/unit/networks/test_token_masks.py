"""The tokens of masks: what is masked is among them on every level, and what pads them is near."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from swiftdiffusion.python_backends.networks.token_masks import PARTS, token_mask


@given(
    st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(lambda sides: arrays(np.bool_, sides)), st.integers(1, 3)
)
def test_every_masked_cell_is_in_a_token_of_every_level(mask: np.ndarray, levels: int) -> None:
    if not mask.any():
        return
    found = token_mask(torch.from_numpy(mask), levels)
    assert found.area == pytest.approx(mask.mean()) and len(found.sides) == len(found.sizes) == levels
    rows, columns = mask.nonzero()
    for level, (height, width) in enumerate(found.sides):
        places = found.places[height, width]
        needed = set(((rows >> level) * width + (columns >> level)).tolist())
        assert needed <= set(places.tolist())
        assert places.tolist() == sorted(set(places.tolist())) and int(places[-1]) < height * width
        sixteenths = -(-len(needed) * PARTS // (height * width))
        assert len(places) == -(-sixteenths * height * width // PARTS)


def test_what_pads_is_nearest() -> None:
    mask = torch.zeros(16, 16)
    mask[4:7, 4:7] = 1
    places = token_mask(mask, 1).places[16, 16]
    rows, columns = places // 16, places % 16
    assert len(places) == 16  # 9, and 7 of the 16 around them
    assert rows.min() >= 3 and rows.max() <= 7 and columns.min() >= 3 and columns.max() <= 7


def test_masks_of_everything_are_full_and_of_nothing_are_none() -> None:
    assert token_mask(torch.ones(5, 7), 3).is_full
    assert not token_mask(torch.eye(16), 1).is_full
    with pytest.raises(ValueError, match="nothing is masked"):
        token_mask(torch.zeros(4, 4), 2)
