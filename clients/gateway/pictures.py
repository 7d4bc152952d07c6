"""Pictures that callers send: base64 of a file, bounded before anything of it is decoded."""

import asyncio
import base64
import binascii
import io
import re
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ..client.pictures import eight_bits
from .errors import ApiError

KEYWORD = "parameters"
"""Of the text chunk of a PNG that A1111's tools read."""

OPAQUE = 255

FORMATS = ("PNG", "JPEG", "WEBP")
_LINE_ENDS = dict.fromkeys(map(ord, "\r\n"))  # `base64` writes lines
_DATA_URL = re.compile(r"data:image/[a-z+.-]{1,40};base64,")

T = TypeVar("T")
TRANSPARENT, WHITE = "transparent", "white"
"""What of a mask is painted anew: where it has transparency that, as OpenAI wants it; else what is white."""


async def read_picture(text: str, max_pixels: int, field: str) -> npt.NDArray[np.uint8]:
    """A picture as [H, W, 3] uint8, turned as its EXIF says; of an animation the first.

    Args:
        text: Its base64, or a data URL of that.
        max_pixels: Height times width that it may have.
        field: Where it stands, for the message.

    Raises:
        ApiError: If it is no picture, or too large.
    """
    return await opened(picture_bytes(text, field), max_pixels, field, _rgb)


async def read_mask(content: bytes, max_pixels: int, field: str) -> tuple[npt.NDArray[np.uint8], str]:
    """A mask as [H, W] uint8, 255 where the picture is painted anew; and by what: `TRANSPARENT` or `WHITE`.

    Args:
        content: The file.
        max_pixels: Height times width that it may have.
        field: Where it stands, for the message.

    Raises:
        ApiError: If it is no picture, or too large.
    """
    return await opened(content, max_pixels, field, _mask)


async def read_size(content: bytes, max_pixels: int, field: str) -> tuple[int, int]:
    """Height and width of a picture once it is turned as its EXIF says; errors as `read_mask`."""
    return await opened(content, max_pixels, field, lambda picture: (picture.height, picture.width))


async def opened(content: bytes, max_pixels: int, field: str, look: Callable[[Image.Image], T]) -> T:
    """What there is to see of a file, within bounds.

    Args:
        content: The file.
        max_pixels: Height times width that it may have.
        field: Where it stands, for the message.
        look: At the picture, of 8 bits, turned as its EXIF says.

    Raises:
        ApiError: If it is no picture, or too large.
    """
    return await asyncio.to_thread(_opened, content, max_pixels, field, look)


def flattened(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """[H, W, 3] uint8, white behind what is transparent, as A1111 reads pictures."""
    if not picture.has_transparency_data:
        return _rgb(picture)
    seen = picture.convert("RGBA")
    return _rgb(Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen))


def picture_bytes(text: str, field: str) -> bytes:
    """The file.

    Raises:
        ApiError: If the text is no base64.
    """
    prefix = _DATA_URL.match(text)
    try:
        return base64.b64decode(text[prefix.end() if prefix else 0 :].translate(_LINE_ENDS), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(
            400, f"{field} is no base64; allowed: base64 of a PNG, JPEG or WebP", param=_param(field)
        ) from None


def _opened(content: bytes, max_pixels: int, field: str, look: Callable[[Image.Image], T]) -> T:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound is this module's
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                if picture.width * picture.height > max_pixels:
                    raise ApiError(
                        400,
                        f"{field} is {picture.width}x{picture.height}; allowed: at most {max_pixels} pixels",
                        param=_param(field),
                    )
                return look(eight_bits(ImageOps.exif_transpose(picture)))
    except ApiError:
        raise
    except Image.DecompressionBombError:  # Pillow has a bound of its own
        raise ApiError(
            400, f"{field} is too large; allowed: at most {max_pixels} pixels", param=_param(field)
        ) from None
    except Exception as error:  # noqa: BLE001  Pillow raises what it likes about a stranger's file
        said = type(error).__name__
        raise ApiError(
            400, f"{field} is no whole picture ({said}); allowed: PNG, JPEG or WebP", param=_param(field)
        ) from None


def _rgb(picture: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(picture.convert("RGB"))


def _mask(picture: Image.Image) -> tuple[npt.NDArray[np.uint8], str]:
    if picture.has_transparency_data:
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
        if alpha.min() < OPAQUE:
            return np.subtract(OPAQUE, alpha, dtype=np.uint8), TRANSPARENT
    return np.asarray(picture.convert("L")), WHITE


def texts_of(content: bytes) -> dict[str, str]:
    """Text chunks of a PNG by keyword; nothing of another file is read, nor its pixels.

    Raises:
        ApiError: If it is no picture.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            # Not its `text`, which would decode it.
            return {str(key): str(value) for key, value in picture.info.items() if isinstance(value, str)}
    except Exception as error:  # noqa: BLE001  Pillow raises what it likes about a stranger's file
        said = type(error).__name__
        raise ApiError(400, f"image is no picture ({said}); allowed: PNG, JPEG or WebP", param="image") from None


def of_size(pictures: list[npt.NDArray[np.uint8]], height: int, width: int) -> list[npt.NDArray[np.uint8]]:
    """Pictures [height, width, 3], resized as the server does it, which so gets no more than it uses."""
    size = width, height
    return [
        each
        if each.shape[:2] == (height, width)
        else np.asarray(Image.fromarray(each).resize(size, Image.Resampling.LANCZOS))
        for each in pictures
    ]


def _param(field: str) -> str:
    return re.split(r"[.\[]", field)[0]
