"""Pictures for ControlNets: by content, within a bound, for as long as somebody leases them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from swiftdiffusion.python_backends.common.errors import ImageUnavailableError
from swiftdiffusion.python_backends.controlnets.images import ControlImages


def picture(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def test_what_was_put_is_got_by_every_process(tmp_path: Path) -> None:
    images, others = ControlImages(tmp_path / "images"), ControlImages(tmp_path / "images")
    key = images.put(picture(0), 32, 32)
    assert (others.get(key) == picture(0)).all()
    assert others.put(picture(0), 32, 32) == key
    assert others.put(picture(1), 32, 32) != key
    assert len(list((tmp_path / "images").glob("*.safetensors"))) == 2


def test_shape_counts_as_content(tmp_path: Path) -> None:
    images = ControlImages(tmp_path / "images")
    flat = np.zeros((2, 8, 3), np.uint8)
    assert images.put(flat, 2, 8) != images.put(flat.reshape(8, 2, 3), 8, 2)


def test_views_that_are_not_contiguous_are_kept_as_they_look(tmp_path: Path) -> None:
    images = ControlImages(tmp_path / "images")
    mirrored = picture(0)[:, ::-1]
    assert (images.get(images.put(mirrored, 32, 32)) == mirrored).all()


def test_other_sizes_are_resized_as_diffusers_does(tmp_path: Path) -> None:
    images = ControlImages(tmp_path / "images")
    processor = VaeImageProcessor(vae_scale_factor=8, do_convert_rgb=True, do_normalize=False)
    expected = processor.preprocess(Image.fromarray(picture(0)), height=48, width=24)[0].permute(1, 2, 0).numpy()
    kept = images.get(images.put(picture(0), 48, 24))
    assert kept.shape == (48, 24, 3)
    assert np.array_equal(kept.astype(np.float32) / 255, expected)


def test_leased_pictures_stay_and_others_make_room(tmp_path: Path) -> None:
    images = ControlImages(tmp_path / "images", max_bytes=8000)  # room for two
    first, second = images.put(picture(0), 32, 32), images.put(picture(1), 32, 32)
    with images.lease(first):
        third = images.put(picture(2), 32, 32)
        assert (images.get(first) == picture(0)).all()
    with pytest.raises(ImageUnavailableError, match="CONTROL_IMAGES: the picture has gone"):
        images.get(second)
    assert (images.get(third) == picture(2)).all()


def test_a_picture_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageUnavailableError, match="CONTROL_IMAGES: it takes"):
        ControlImages(tmp_path / "images", max_bytes=1000).put(picture(0), 32, 32)
