"""Pixels → PNG, WebP, JPEG. Needs no torch."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, PngImagePlugin

from ..request.outputs import LOSSLESS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..request.outputs import FileOutput

PNG_EFFORT = 1
"""zlib's level: its own default takes twice as long to save a tenth of the bytes."""

WEBP_EFFORT = 0
"""libwebp's `method`: higher ones take up to three times as long for the same size within a few per cent."""


def encode_picture(pixels: np.ndarray, file: FileOutput, texts: Mapping[str, str]) -> bytes:
    """A picture as a file, in base64 if that is asked for.

    Args:
        pixels: [H, W, 3] uint8.
        file: Its format.
        texts: Keyword → text of the chunks that a PNG carries.
    """
    stream = io.BytesIO()
    picture = Image.fromarray(pixels)
    if file.format == "png":
        chunks = PngImagePlugin.PngInfo()
        for keyword, text in texts.items():
            chunks.add_text(keyword, text) if text.isascii() else chunks.add_itxt(keyword, text)
        picture.save(stream, "PNG", pnginfo=chunks, compress_level=PNG_EFFORT)
    elif file.format == "webp":
        picture.save(stream, "WEBP", quality=file.quality, lossless=file.quality == LOSSLESS, method=WEBP_EFFORT)
    else:
        picture.save(stream, "JPEG", quality=file.quality, subsampling=0 if file.quality >= 90 else 2)
    return base64.b64encode(stream.getvalue()) if file.base64 else stream.getvalue()


def resized(pixels: np.ndarray, longer_side: int) -> np.ndarray:
    """The picture [H, W, 3] uint8 with so many pixels along its longer side: [h, w, 3]."""
    height, width = pixels.shape[:2]
    scale = longer_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
