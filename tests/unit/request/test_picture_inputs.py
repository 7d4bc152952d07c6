"""Files of a request's pictures: what they show is taken, whatever else strangers send is refused in a sentence."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from diffusers.utils import load_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edits import box, picture
from parsed_edits import parse, picture_file, refusal
from swiftdiffusion.python_backends.common.errors import InvalidRequestError

MASK = box(40, 48, 8, 8, 24, 24)
RGB = Image.fromarray(picture(40, 48)[0])
GREY16 = np.random.default_rng(2).integers(0, 65536, (40, 48), np.uint16)


@pytest.mark.parametrize("travels", [lambda file: file, base64.b64encode, base64.encodebytes])
@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        (picture_file(RGB), np.asarray(RGB)),
        (picture_file(RGB, "WEBP", lossless=True), np.asarray(RGB)),
        (picture_file(RGB, "JPEG"), np.asarray(load_image(Image.open(io.BytesIO(picture_file(RGB, "JPEG")))))),
        (
            picture_file(RGB.convert("CMYK"), "JPEG"),
            np.asarray(Image.open(io.BytesIO(picture_file(RGB.convert("CMYK"), "JPEG"))).convert("RGB")),
        ),
        (picture_file(RGB.convert("P")), np.asarray(RGB.convert("P").convert("RGB"))),
        (picture_file(RGB.convert("L")), np.asarray(RGB.convert("L").convert("RGB"))),
        (picture_file(Image.fromarray(GREY16)), np.repeat((GREY16 >> 8).astype(np.uint8)[..., None], 3, 2)),
        (picture_file(Image.fromarray(np.dstack([np.asarray(RGB), np.asarray(RGB)[..., 0]]))), np.asarray(RGB)),
        (
            picture_file(RGB, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
            np.rot90(np.asarray(RGB), -1),
        ),
        (
            picture_file(RGB, "MPO", save_all=True, append_images=[RGB.rotate(90)]),
            np.asarray(Image.open(io.BytesIO(picture_file(RGB, "JPEG")))),
        ),
    ],
    ids=["png", "webp", "jpeg", "cmyk", "palette", "grey", "16 bits", "transparent", "rotated", "a camera's two"],
)
def test_files_are_the_pictures_that_they_show(
    file: bytes, wanted: np.ndarray, travels: Callable[[bytes], bytes]
) -> None:
    request, kept = parse(ENCODED_INIT_IMAGE=travels(file))
    assert request.edit is not None
    assert np.array_equal(kept[request.edit.picture], wanted)


def test_masks_of_files_are_what_is_bright() -> None:
    mask = Image.fromarray(np.repeat(MASK[0][..., None], 3, 2))
    request, kept = parse(INIT_IMAGE=picture(40, 48), ENCODED_MASK_IMAGE=picture_file(mask))
    assert request.edit is not None and request.edit.mask is not None
    assert np.array_equal(kept[request.edit.mask], MASK[0] // 255)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (bomb(60_000, 60_000), "ENCODED_INIT_IMAGE is too large; allowed: 1 to 4096 high and wide"),
        (bomb(8000, 8000), "ENCODED_INIT_IMAGE is 8000 high and 8000 wide; allowed: 1 to 4096"),
        (bomb(4096, 4096), "ENCODED_INIT_IMAGE is no whole picture (OSError); allowed: a PNG"),
        (picture_file(RGB)[:1000], "ENCODED_INIT_IMAGE is no whole picture"),
        (picture_file(RGB)[:20], "ENCODED_INIT_IMAGE is no whole picture"),
        (base64.b64encode(b"GIF89a" + bytes(40)), "ENCODED_INIT_IMAGE is no whole picture (UnidentifiedImageError)"),
        (base64.b64encode(picture_file(RGB))[:-3], "allowed: a PNG, JPEG or WebP, or base64 of one"),
        (b"", "ENCODED_INIT_IMAGE is no whole picture"),
        (
            picture_file(RGB, save_all=True, append_images=[RGB.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]),
            "ENCODED_INIT_IMAGE has 2 pictures, one after the other; allowed: one",
        ),
        (
            picture_file(RGB, "WEBP", save_all=True, append_images=[RGB.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]),
            "ENCODED_INIT_IMAGE has 2 pictures, one after the other; allowed: one",
        ),
    ],
    ids=[
        "bomb",
        "smaller bomb",
        "no pixels",
        "cut",
        "header",
        "gif",
        "base64 cut",
        "empty",
        "animated png",
        "animated webp",
    ],
)
def test_files_of_strangers_are_refused_in_a_sentence(file: bytes, said: str) -> None:
    assert said in refusal(ENCODED_INIT_IMAGE=file)


@given(st.binary(max_size=300), st.integers(0, 200))
def test_any_bytes_are_a_picture_or_refused(noise: bytes, at: int) -> None:
    good = picture_file(RGB)
    for file in (noise, good[:at] + noise + good[at + len(noise) :]):
        try:
            parse(ENCODED_INIT_IMAGE=file)
        except InvalidRequestError as error:
            assert "INIT_IMAGE" in str(error)
