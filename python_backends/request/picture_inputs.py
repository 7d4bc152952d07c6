"""Pictures of a request: arrays as they came, or files, bounded before anything of them is decoded. Needs no torch."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from ..common.errors import ImageUnavailableError, InvalidRequestError
from ..common.sentences import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from .fields import Fields

MAX_SIDE = 4096
"""Largest height and width of a picture that a request brings."""

MAX_FILE_BYTES = 64 * 2**20
FORMATS = ("PNG", "JPEG", "WEBP")
SEVERAL = "MPO"
"""What Pillow calls a JPEG with other pictures behind it, as cameras write them: the first is the picture."""
ALLOWED = "a PNG, JPEG or WebP, or base64 of one"
BRIGHT = 128
"""From here on a pixel of a mask is to be painted anew: diffusers' 0.5."""


def picture_of(fields: Fields, name: str) -> np.ndarray | None:
    """A picture [H, W, 3] uint8 or, of a field of that shape, a mask [H, W]; None where there is none.

    Args:
        fields: Of the request.
        name: That of the array; `ENCODED_` stands before that of the file.

    Raises:
        InvalidRequestError: If both are there, or it is no picture, or too large.
    """
    array, encoded = fields.array(name), fields.content(f"ENCODED_{name}", MAX_FILE_BYTES)
    if encoded is None:
        if array is not None:
            _check_size(name, array.shape[1], array.shape[0])
        return array
    if array is not None:
        raise InvalidRequestError(f"{name} is there, and ENCODED_{name} too; allowed: one of them")
    return _decoded(f"ENCODED_{name}", _file(f"ENCODED_{name}", encoded), "L" if name == "MASK_IMAGE" else "RGB")


def fitted(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture [H, W, 3] or [H, W] in another size, as diffusers' `VaeImageProcessor` resizes it."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def binary(mask: np.ndarray) -> np.ndarray:
    """1 where a mask [H, W] wants the picture painted anew, else 0: uint8."""
    return (mask >= BRIGHT).astype(np.uint8)


def _check_size(name: str, width: int, height: int) -> None:
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise InvalidRequestError(f"{name} is {height} high and {width} wide; allowed: 1 to {MAX_SIDE}")


def _file(name: str, content: bytes) -> bytes:
    if content.startswith((b"\x89PNG", b"\xff\xd8")) or (content[:4], content[8:12]) == (b"RIFF", b"WEBP"):
        return content
    try:
        return base64.b64decode(content.translate(None, b"\r\n"), validate=True)
    except (binascii.Error, ValueError):
        said = f"{name} begins with {shown(content[:16].decode('latin-1'))}"
        raise InvalidRequestError(f"{said}; allowed: {ALLOWED}") from None


def _decoded(name: str, content: bytes, mode: str) -> np.ndarray:
    """Turned as its EXIF says; transparency is left out, as `diffusers.utils.load_image` does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound is this module's
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                _check_size(name, *picture.size)
                frames = getattr(picture, "n_frames", 1)
                if frames > 1 and picture.format != SEVERAL:
                    raise InvalidRequestError(f"{name} has {frames} pictures, one after the other; allowed: one")
                return np.asarray(_eight_bits(ImageOps.exif_transpose(picture)).convert(mode))
    except InvalidRequestError:
        raise
    except Image.DecompressionBombError:  # Pillow has a bound of its own
        raise InvalidRequestError(f"{name} is too large; allowed: 1 to {MAX_SIDE} high and wide") from None
    except Exception as error:  # noqa: BLE001  Pillow raises what it likes about a stranger's file
        said = type(error).__name__
        raise InvalidRequestError(f"{name} is no whole picture ({said}); allowed: {ALLOWED}") from None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16 bits of grey as 8: Pillow's own conversion makes white of all but the darkest."""
    return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)) if picture.mode == "I;16" else picture


def kept(field: str, picture: np.ndarray, keep_picture: Callable[[np.ndarray], str]) -> str:
    """The key of a picture of a field, which is kept.

    Raises:
        ImageUnavailableError: If there is no room.
    """
    try:
        return keep_picture(picture)
    except ImageUnavailableError as error:
        raise ImageUnavailableError(f"{field}: {error}") from error
