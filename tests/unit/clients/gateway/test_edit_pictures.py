"""Pictures and masks to start from: what of them is painted anew, and what no picture of a stranger may do."""

from __future__ import annotations

import asyncio
import io
import resource
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from swiftdiffusion.clients.gateway.errors import ApiError
from swiftdiffusion.clients.gateway.pictures import flattened, opened, read_mask, read_size
from swiftdiffusion.clients.gateway.webui_masks import mask_of

LIMIT = 4096 * 4096
LEFT = np.repeat([[255, 255, 0, 0]], 3, axis=0).astype(np.uint8)
"""A mask [3, 4]."""


def file(picture: Image.Image, file_format: str = "PNG", **how: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format, **how)
    return stream.getvalue()


def with_alpha(alpha: np.ndarray, colour: int = 0) -> Image.Image:
    return Image.fromarray(np.dstack([np.full((*alpha.shape, 3), colour, np.uint8), alpha]))


def mask(content: bytes, limit: int = LIMIT) -> tuple[np.ndarray, str]:
    return asyncio.run(read_mask(content, limit, "mask"))


def size(content: bytes, limit: int = LIMIT) -> tuple[int, int]:
    return asyncio.run(read_size(content, limit, "image"))


def webui_mask(content: bytes) -> np.ndarray:
    return asyncio.run(opened(content, LIMIT, "mask", mask_of))


def palette_with_a_hole() -> Image.Image:
    """Its first colour is transparent: on the left."""
    made = Image.fromarray((LEFT == 0).astype(np.uint8), "P")
    made.putpalette([9, 9, 9, 200, 200, 200])
    return made


@pytest.mark.parametrize(
    ("content", "masked_by"),
    [
        (file(Image.fromarray(LEFT)), "white"),
        (file(Image.fromarray(LEFT).convert("RGB")), "white"),
        (file(Image.fromarray(LEFT).convert("1")), "white"),
        (file(Image.fromarray(LEFT).convert("RGBA")), "white"),  # nothing of it is transparent
        (file(Image.fromarray(LEFT.astype(np.uint16) * 257)), "white"),
        (file(Image.fromarray(LEFT), "WEBP", lossless=True), "white"),
        (file(with_alpha(255 - LEFT)), "transparent"),
        (file(with_alpha(255 - LEFT, 255)), "transparent"),
        (file(with_alpha(255 - LEFT).convert("LA")), "transparent"),
        (file(with_alpha(255 - LEFT), "WEBP", lossless=True, exact=True), "transparent"),
        (file(palette_with_a_hole(), transparency=0), "transparent"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mask_is_what_is_transparent_or_else_what_is_white(content: bytes, masked_by: str) -> None:
    pixels, said = mask(content)
    assert (pixels == LEFT).all() and said == masked_by
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize(
    "content",
    [
        file(Image.fromarray(LEFT)),
        file(Image.fromarray(LEFT).convert("RGBA")),
        file(with_alpha(LEFT)),
        file(with_alpha(LEFT, 255)),
        file(with_alpha(np.where(LEFT > 0, 129, 128).astype(np.uint8))),
    ],
    ids=["white", "white, nothing transparent", "opaque", "opaque white", "cut at the middle"],
)
def test_a1111_paints_what_is_opaque(content: bytes) -> None:
    """The other way round than OpenAI."""
    assert (webui_mask(content) == LEFT).all()


def test_half_a_mask_stays_half() -> None:
    """The server cuts it, after it is resized."""
    assert mask(file(with_alpha(np.full((2, 2), 55, np.uint8))))[0].tolist() == [[200, 200], [200, 200]]
    assert mask(file(Image.new("L", (2, 2), 77)))[0].tolist() == [[77, 77], [77, 77]]


def test_white_is_behind_what_is_transparent() -> None:
    content = file(with_alpha(np.array([[0, 255, 128]], np.uint8)))
    assert asyncio.run(opened(content, LIMIT, "init_images", flattened))[0, :, 0].tolist() == [255, 0, 127]
    plain = file(Image.new("RGB", (2, 1), (1, 2, 3)))
    assert asyncio.run(opened(plain, LIMIT, "init_images", flattened))[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_says(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = file(Image.new("RGB", (20, 10)), file_format, exif=exif)
    wanted = (20, 10) if orientation > 4 else (10, 20)
    assert size(content) == mask(content)[0].shape == wanted


@pytest.mark.parametrize(("width", "height"), [(1, 1), (4096, 1), (1, 4096), (4096, 4096)])
def test_any_size_within_the_bound_is_read(width: int, height: int) -> None:
    content = file(Image.new("L", (width, height), 7))
    assert size(content) == mask(content)[0].shape == (height, width)


@pytest.mark.parametrize(
    "content",
    [
        file(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"),
        file(Image.new("YCbCr", (8, 8)), "JPEG"),
        file(Image.fromarray(np.full((8, 8), 0x4DFF, np.uint16))),
        file(Image.new("RGB", (8, 8)), save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]),
    ],
    ids=["CMYK", "YCbCr", "16 bits", "animated"],
)
def test_unusual_pictures_have_a_size_and_are_masks(content: bytes) -> None:
    assert size(content) == (8, 8)
    assert mask(content)[0].shape == webui_mask(content).shape == (8, 8)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10_000_000), 9)) + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bomb(5_000, 5_000), "is 5000x5000; allowed: at most 16777216 pixels"),
        (bomb(12_000, 12_000), "is 12000x12000; allowed: at most 16777216 pixels"),
        (bomb(50_000, 50_000), "is too large; allowed: at most 16777216 pixels"),
        (b"", "is no whole picture (UnidentifiedImageError); allowed: PNG, JPEG or WebP"),
        (b"%PDF-1.4", "is no whole picture"),
        (file(Image.new("RGB", (8, 8)), "GIF"), "is no whole picture"),
        *((file(Image.fromarray(NOISE), kind)[:3_000], "is no whole picture") for kind in ("PNG", "JPEG", "WEBP")),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_none_or_too_large_is_refused_in_little_memory(content: bytes, said: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for look, field in ((size, "image"), (mask, "mask")):
        with pytest.raises(ApiError) as caught:
            look(content)
        assert caught.value.message.startswith(f"{field} {said}")
        assert (caught.value.status, caught.value.param) == (400, field)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15, "KiB"


@given(st.integers(8, 400), st.integers(0, 255))
def test_a_damaged_file_is_a_mask_or_a_refusal(place: int, byte: int) -> None:
    content = bytearray(file(with_alpha(255 - LEFT)))
    content[place % len(content)] = byte
    for look in (mask, size, webui_mask):
        try:
            assert look(bytes(content)) is not None
        except ApiError as error:
            assert error.status == 400
