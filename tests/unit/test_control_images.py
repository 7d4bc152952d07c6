"""Pictures for ControlNets: by content, within a bound, for as long as somebody leases them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from swiftdiffusion.python_backends.control_images import ControlImages
from swiftdiffusion.python_backends.errors import ImageUnavailableError


def picture(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def test_what_was_put_is_got_by_every_process(tmp_path: Path) -> None:
    images, others = ControlImages(tmp_path / "images"), ControlImages(tmp_path / "images")
    key = images.put(picture(0))
    assert (others.get(key) == picture(0)).all()
    assert others.put(picture(0)) == key
    assert others.put(picture(1)) != key
    assert len(list((tmp_path / "images").glob("*.safetensors"))) == 2


def test_shape_counts_as_content(tmp_path: Path) -> None:
    images = ControlImages(tmp_path / "images")
    flat = np.zeros((2, 8, 3), np.uint8)
    assert images.put(flat) != images.put(flat.reshape(8, 2, 3))


def test_views_that_are_not_contiguous_are_kept_as_they_look(tmp_path: Path) -> None:
    images = ControlImages(tmp_path / "images")
    mirrored = picture(0)[:, ::-1]
    assert (images.get(images.put(mirrored)) == mirrored).all()


def test_leased_pictures_stay_and_others_make_room(tmp_path: Path) -> None:
    images = ControlImages(tmp_path / "images", max_bytes=8000)  # room for two
    first, second = images.put(picture(0)), images.put(picture(1))
    with images.lease(first):
        third = images.put(picture(2))
        assert (images.get(first) == picture(0)).all()
    with pytest.raises(ImageUnavailableError, match="CONTROL_IMAGES: the picture has gone"):
        images.get(second)
    assert (images.get(third) == picture(2)).all()


def test_a_picture_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageUnavailableError, match="CONTROL_IMAGES: it takes"):
        ControlImages(tmp_path / "images", max_bytes=1000).put(picture(0))
