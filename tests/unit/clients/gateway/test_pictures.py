"""Pictures of strangers: every usual kind comes out as it looks, what is none is refused before it takes memory."""

from __future__ import annotations

import asyncio
import base64
import io
import resource
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from swiftdiffusion.clients.gateway.errors import ApiError
from swiftdiffusion.clients.gateway.pictures import of_size, picture_bytes, read_picture, texts_of

LIMIT = 4096 * 4096
FIELD = "controlnet[1].image"


def file(picture: Image.Image, file_format: str = "PNG", **how: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format, **how)
    return stream.getvalue()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def read(content: bytes | str, limit: int = LIMIT) -> np.ndarray:
    given = content if isinstance(content, str) else text(content)
    return asyncio.run(read_picture(given, limit, FIELD))


def refusal(content: bytes | str, limit: int = LIMIT) -> str:
    with pytest.raises(ApiError) as caught:
        read(content, limit)
    assert (caught.value.status, caught.value.param) == (400, "controlnet")
    assert caught.value.message.startswith(f"{FIELD} is ")
    assert len(caught.value.message) < 200
    return caught.value.message


def halves(width: int = 64, height: int = 32) -> Image.Image:
    """Red above blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, :, 0] = 255
    pixels[height // 2 :, :, 2] = 255
    return Image.fromarray(pixels)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that says that it is large, all of it there as far as its data goes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(10_000_000), 9))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def test_base64_may_have_lines() -> None:
    content = file(halves())
    assert (read(base64.encodebytes(content).decode("ascii")) == read(text(content))).all()


@pytest.mark.parametrize(("file_format", "near"), [("PNG", 0), ("JPEG", 6), ("WEBP", 12)])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:image/svg+xml;base64,"])
def test_files_and_data_urls_of_them_are_read(file_format: str, near: int, prefix: str) -> None:
    """Of what kind is decided by the file; what a data URL says of that is often wrong."""
    how = {"quality": 95} if near else {}
    pixels = read(prefix + text(file(halves(), file_format, **how)))
    assert (pixels.shape, pixels.dtype) == ((32, 64, 3), np.uint8)
    difference = np.abs(pixels.astype(int) - np.asarray(halves()))
    assert difference[:12].max() <= near
    assert difference[20:].max() <= near


def of_each_mode() -> dict[str, tuple[bytes, tuple[int, int, int]]]:
    """File → the colour of its one area."""
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    deep = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    row = zlib.compress(b"\0" + struct.pack(">6H", *([10 << 8, 200 << 8, 30 << 8] * 2)))
    return {
        "grey": (file(Image.new("L", (8, 8), 77)), (77, 77, 77)),
        "one bit": (file(Image.new("1", (8, 8), 1)), (255, 255, 255)),
        "grey with alpha": (file(Image.new("LA", (8, 8), (77, 0))), (77, 77, 77)),
        "grey of 16 bits": (file(Image.fromarray(np.full((8, 8), 0x4DFF, np.uint16))), (77, 77, 77)),
        "colour of 16 bits": (
            b"\x89PNG\r\n\x1a\n" + deep + chunk(b"IDAT", row) + chunk(b"IEND", b""),
            (10, 200, 30),
        ),
        "alpha": (file(Image.new("RGBA", (8, 8), (10, 200, 30, 0))), (10, 200, 30)),
        "palette": (file(palette), (10, 200, 30)),
        "palette with a transparent colour": (file(palette, transparency=1), (10, 200, 30)),
        "CMYK": (file(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), (254, 0, 0)),
        "grey JPEG": (file(Image.new("L", (8, 8), 77), "JPEG"), (77, 77, 77)),
        "WebP with alpha": (file(Image.new("RGBA", (8, 8), (10, 200, 30, 90)), "WEBP", lossless=True), (10, 200, 30)),
    }


@pytest.mark.parametrize("mode", of_each_mode())
def test_every_mode_becomes_the_colours_that_it_has(mode: str) -> None:
    content, colour = of_each_mode()[mode]
    pixels = read(content)
    assert pixels.shape[2] == 3
    assert np.abs(pixels.astype(int) - colour).max() <= 1


def test_grey_of_16_bits_keeps_its_shades() -> None:
    """As depth maps have them."""
    ramp = np.arange(256, dtype=np.uint16).repeat(4).reshape(16, 64) * 257
    assert (read(file(Image.fromarray(ramp)))[..., 1] == ramp >> 8).all()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_rotated_picture_is_turned_as_its_exif_says(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    pixels = read(file(halves(), file_format, exif=exif))
    assert pixels.shape == (64, 32, 3)
    assert pixels[32, 28, 0] > 200 and pixels[32, 4, 2] > 200


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_of_an_animation_the_first_picture_counts(file_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("lime", "blue", "red")]
    content = file(frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True)
    assert (read(content) == (0, 255, 0)).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (4096, 1), (1, 4096), (4096, 4096)])
def test_any_size_within_the_bound_is_read(width: int, height: int) -> None:
    assert read(file(Image.new("L", (width, height), 7))).shape == (height, width, 3)


def test_a_picture_beyond_the_bound_is_refused() -> None:
    assert refusal(file(halves()), 64 * 32 - 1) == f"{FIELD} is 64x32; allowed: at most 2047 pixels"


@pytest.mark.parametrize("side", [5_000, 12_000, 50_000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    """Below and above where Pillow itself warns, and refuses."""
    content = text(bomb(side, side))
    assert len(content) < 20_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = refusal(content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15, "KiB"
    assert f"allowed: at most {LIMIT} pixels" in said


def test_other_kinds_of_files_are_refused() -> None:
    others = {kind: file(halves(), kind) for kind in ("GIF", "TIFF", "BMP", "ICO", "PPM", "TGA")}
    others["SVG"] = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    others["nothing"], others["text"], others["PDF"] = b"", b"a cat", b"%PDF-1.4"
    others["EPS"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    for content in others.values():
        assert "allowed: PNG, JPEG or WebP" in refusal(content)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_a_file_that_breaks_off_is_refused(file_format: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    content = file(Image.fromarray(noise), file_format)
    assert "no whole picture" in refusal(content[: int(len(content) * part)])


@pytest.mark.parametrize(
    "given",
    ["!", "====", "aGVsbG8", text(file(halves()))[:-3], "ä" * 8, "data:image/png;base64", "data:text/html;base64,aGk="],
)
def test_what_is_no_base64_is_refused(given: str) -> None:
    assert refusal(given) == f"{FIELD} is no base64; allowed: base64 of a PNG, JPEG or WebP"


@given(st.binary(max_size=200))
def test_any_bytes_survive_base64_and_are_refused_as_a_picture(content: bytes) -> None:
    assert picture_bytes(text(content), FIELD) == content
    refusal(content)


@given(st.integers(8, 400), st.integers(0, 255))
def test_a_damaged_file_is_a_picture_or_a_refusal(place: int, byte: int) -> None:
    content = bytearray(file(halves(16, 16)))
    content[place % len(content)] = byte
    try:
        assert read(bytes(content)).shape[2] == 3
    except ApiError as error:
        assert error.status == 400


def test_pictures_are_resized_to_what_is_made_as_the_server_does_it() -> None:
    small, large = (np.full((side, 2 * side, 3), 7, np.uint8) for side in (8, 16))
    assert of_size([], 32, 64) == []
    right = np.zeros((32, 64, 3), np.uint8)
    assert of_size([right], 32, 64)[0] is right
    resized = of_size([small, large], 32, 64)
    assert [picture.shape for picture in resized] == [(32, 64, 3)] * 2
    assert all((picture == 7).all() for picture in resized)
    halved = np.asarray(halves())
    wanted = Image.fromarray(halved).resize((20, 24), Image.Resampling.LANCZOS)
    assert (of_size([halved], 24, 20)[0] == np.asarray(wanted)).all()


def test_texts_of_a_picture_are_read_without_its_pixels() -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a cat")
    chunks.add_itxt("more", "ä cat")
    content = file(Image.new("RGB", (4000, 4000)), pnginfo=chunks)
    tracemalloc.start()
    texts = texts_of(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (texts["parameters"], texts["more"]) == ("a cat", "ä cat")
    assert peak < 2**20
    with pytest.raises(ApiError, match="image is no picture"):
        texts_of(b"no picture")
