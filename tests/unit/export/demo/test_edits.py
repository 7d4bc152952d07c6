"""Edits of drawn scenes: what is masked is the item that becomes another."""

from __future__ import annotations

from itertools import islice

import numpy as np

from swiftdiffusion.export.demo.checker import look
from swiftdiffusion.export.demo.edits import scene_edits


def test_an_item_becomes_another_within_its_mask() -> None:
    edits = list(islice(scene_edits(), 20))
    for edit in edits:
        (old, new), *more = [
            pair for pair in zip(look(edit.picture).items, edit.scene.items, strict=True) if pair[0] != pair[1]
        ]
        assert not more and old.position == new.position
        assert old.colour != new.colour and old.shape != new.shape
        assert f"{new.colour} {new.shape}" in edit.after and f"{old.colour} {old.shape}" in edit.before
        blank = np.where(edit.mask[..., None] > 0, edit.picture[0, 0], edit.picture)
        assert len(look(blank).items) == 1, "something of the old item lies outside the mask"
        assert 0.05 < (edit.mask > 0).mean() < 0.5
    assert len({edit.after for edit in edits}) == len(edits)


def test_the_same_seed_gives_the_same_edits() -> None:
    first, again, other = (next(scene_edits(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.picture, again.picture) and first.after == again.after
    assert not np.array_equal(first.picture, other.picture)
