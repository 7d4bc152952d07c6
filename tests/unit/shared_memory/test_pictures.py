"""Pictures of requests: by content, within a bound, for as long as somebody leases them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from swiftdiffusion.python_backends.common.errors import ImageUnavailableError
from swiftdiffusion.python_backends.shared_memory.pictures import Pictures


def picture(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def test_what_was_put_is_got_by_every_process(tmp_path: Path) -> None:
    pictures, others = Pictures(tmp_path / "images"), Pictures(tmp_path / "images")
    key = pictures.put(picture(0))
    assert (others.get(key) == picture(0)).all()
    assert others.put(picture(0)) == key
    assert others.put(picture(1)) != key
    assert len(list((tmp_path / "images").glob("*.safetensors"))) == 2


def test_shape_counts_as_content(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path / "images")
    flat = np.zeros((2, 8, 3), np.uint8)
    assert len({pictures.put(flat.reshape(shape)) for shape in ((2, 8, 3), (8, 2, 3), (4, 3, 4), (6, 8))}) == 4


def test_views_that_are_not_contiguous_are_kept_as_they_look(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path / "images")
    mirrored = picture(0)[:, ::-1]
    assert (pictures.get(pictures.put(mirrored)) == mirrored).all()


def test_leased_pictures_stay_and_others_make_room(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path / "images", max_bytes=8000)  # room for two
    first, second = pictures.put(picture(0)), pictures.put(picture(1))
    with pictures.lease(first):
        third = pictures.put(picture(2))
        assert (pictures.get(first) == picture(0)).all()
    with pytest.raises(ImageUnavailableError, match="a picture of the request has gone"):
        pictures.get(second)
    with pytest.raises(ImageUnavailableError, match="a picture of the request has gone"):
        pictures.lease(second)
    assert (pictures.get(third) == picture(2)).all()


def test_a_picture_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageUnavailableError, match=r"^it takes .* MiB, more than the whole host cache"):
        Pictures(tmp_path / "images", max_bytes=1000).put(picture(0))
