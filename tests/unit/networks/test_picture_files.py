"""Pictures become files that any reader gets back: exactly where the format keeps every pixel."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from swiftdiffusion.python_backends.networks.picture_files import encode_picture, resized
from swiftdiffusion.python_backends.request.outputs import FileFormat, FileOutput

NOISE = np.random.default_rng(0).integers(0, 256, (40, 72, 3), np.uint8)
PHOTO = np.asarray(
    Image.open(Path(__file__).resolve().parents[3] / "docs/demo.webp").convert("RGB").crop((0, 0, 256, 256))
)


def read(content: bytes, base64_text: bool = False) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(content, validate=True) if base64_text else content))


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference in units of 1/255."""
    return float(np.abs(first.astype(np.float64) - second).mean())


@pytest.mark.parametrize("in_base64", [False, True])
@pytest.mark.parametrize(
    "pixels", [NOISE, PHOTO, NOISE[:1], NOISE[:, :1], NOISE[:1, :1]], ids=lambda each: str(each.shape)
)
@pytest.mark.parametrize("name", ["png", "webp"])
def test_png_and_webp_100_keep_every_pixel(name: FileFormat, pixels: np.ndarray, in_base64: bool) -> None:
    picture = read(encode_picture(pixels, FileOutput(name, 100, in_base64), {}), in_base64)
    assert (picture.format, picture.mode) == (name.upper(), "RGB")
    assert np.array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize("in_base64", [False, True])
@pytest.mark.parametrize(("name", "quality"), [("webp", 90), ("webp", 99), ("jpeg", 90), ("jpeg", 100)])
def test_webp_and_jpeg_are_close(name: FileFormat, quality: int, in_base64: bool) -> None:
    content = encode_picture(PHOTO, FileOutput(name, quality, in_base64), {})
    picture = read(content, in_base64)
    assert (picture.format, picture.mode, picture.size) == (name.upper(), "RGB", (256, 256))
    assert 0 < distance(np.asarray(picture), PHOTO) < 2.5


@pytest.mark.parametrize("name", ["webp", "jpeg"])
def test_less_quality_is_fewer_bytes_and_farther_off(name: FileFormat) -> None:
    files = [encode_picture(PHOTO, FileOutput(name, quality), {}) for quality in (1, 30, 60, 90)]
    assert sorted(files, key=len) == files
    distances = [distance(np.asarray(read(content)), PHOTO) for content in files]
    assert sorted(distances, reverse=True) == distances


TEXTS = {
    "ASCII": "a red circle\nSteps: 20, Size: 64x64",
    "umlauts": "ein grüner Stern über weißem Grund, é",
    "emoji": "\U0001f98a on 雪",
    "long": "x" * 100_000,
    "empty": "",
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_png_carries_texts(case: str) -> None:
    texts = {"swiftdiffusion": '{"seed": 7}', "parameters": TEXTS[case]}
    picture = read(encode_picture(NOISE, FileOutput("png", 100, metadata=True), texts))
    assert isinstance(picture.text, dict)
    assert picture.text == texts
    assert np.array_equal(np.asarray(picture), NOISE)


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=60))
def test_any_text_without_nul_comes_back(text: str) -> None:
    picture = read(encode_picture(NOISE[:4, :4], FileOutput("png", 100), {"parameters": text}))
    assert picture.text == {"parameters": text}


def test_without_texts_there_are_none() -> None:
    assert read(encode_picture(NOISE, FileOutput("png", 100), {})).text == {}


@pytest.mark.parametrize(
    ("shape", "longer_side", "expected"),
    [
        ((8, 16), 256, (128, 256)),
        ((128, 64), 16, (16, 8)),
        ((1, 64), 16, (1, 16)),
        ((64, 1), 1024, (1024, 16)),
        ((1, 1), 8, (8, 8)),
        ((3, 200), 16, (1, 16)),
        ((90, 160), 160, (90, 160)),
    ],
)
def test_resized_keeps_the_shape_as_far_as_pixels_allow(
    shape: tuple[int, int], longer_side: int, expected: tuple[int, int]
) -> None:
    grey = np.full((*shape, 3), 77, np.uint8)
    found = resized(grey, longer_side)
    assert found.shape == (*expected, 3)
    assert found.dtype == np.uint8
    assert (found == 77).all()


def test_a_picture_of_the_size_wanted_stays_as_it_is() -> None:
    assert np.array_equal(resized(NOISE, 72), NOISE)
