"""A1111's inpainting around what the server does: the mask's soft edge, the part alone that is painted, larger."""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps, PngImagePlugin

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom; the latter two are outside."""

QUALITY = 90
"""Of WebP and JPEG, as the server's."""
WEBP_EFFORT = 0
"""libwebp's `method`, likewise."""
OPAQUE = 255
STRETCHED, CUT, FILLED = 0, 1, 2
"""A1111's `resize_mode`."""
HALF = 128
"""Transparency of a mask is cut above it, as A1111 does."""


@dataclass(frozen=True)
class Overlay:
    """The old picture, laid over the new one where its mask leaves it.

    Attributes:
        picture: The old one, [H, W, 3], of the size of the answer.
        shown: How much of the new one is seen, [H, W].
        place: Which part of the old one that is.
    """

    picture: Pixels
    shown: Pixels
    place: Box

    def over(self, new: Image.Image) -> Image.Image:
        """The new picture, or a preview of it, within the old one."""
        left, top, right, bottom = self.place
        size = right - left, bottom - top
        painted = Image.fromarray(self.picture).copy()
        fitting = new.convert("RGB")
        painted.paste(fitting if fitting.size == size else fitting.resize(size, Image.Resampling.LANCZOS), (left, top))
        return Image.composite(painted, Image.fromarray(self.picture), Image.fromarray(self.shown))

    def finished(self, content: bytes, file_format: str) -> bytes:
        """A file of the server's as one of the whole; the texts of a PNG stay."""
        with Image.open(io.BytesIO(content)) as opened:
            whole, texts = self.over(opened), getattr(opened, "text", {})
        stream = io.BytesIO()
        if file_format == "png":
            chunks = PngImagePlugin.PngInfo()
            for keyword, text in texts.items():
                chunks.add_itxt(keyword, text) if not text.isascii() else chunks.add_text(keyword, text)
            whole.save(stream, "PNG", pnginfo=chunks)
        else:
            options = {"subsampling": 0} if file_format == "jpeg" else {"method": WEBP_EFFORT}
            whole.save(stream, file_format.upper(), quality=QUALITY, **options)
        return stream.getvalue()


def fitted(pixels: Pixels, mode: int, height: int, width: int) -> Pixels:
    """A picture [H, W, 3] or a mask [H, W] in another size; what is filled goes on as its edges are."""
    image, size, how = Image.fromarray(pixels), (width, height), Image.Resampling.LANCZOS
    if image.size == size:
        return pixels
    if mode == CUT:
        return np.asarray(ImageOps.fit(image, size, how))
    if mode == FILLED:
        inner = np.asarray(ImageOps.contain(image, size, how))
        above, before = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
        around = [(above, height - inner.shape[0] - above), (before, width - inner.shape[1] - before)]
        return np.pad(inner, [*around, *[(0, 0)] * (inner.ndim - 2)], "edge")
    return np.asarray(image.resize(size, how))


def mask_of(picture: Image.Image) -> Pixels:
    """A mask [H, W] as A1111 reads it, 255 where the picture is painted anew: what is opaque, or else what is white."""
    if picture.has_transparency_data:
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
        if alpha.min() < OPAQUE:
            return ((alpha > HALF) * OPAQUE).astype(np.uint8)
    return np.asarray(picture.convert("L"))


def blurred(mask: Pixels, across: float, down: float) -> Pixels:
    """A mask with a Gaussian's soft edge, of these deviations in pixels: Pillow's, which three boxes stand for."""
    return np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur((across, down))))


def doubled(mask: Pixels) -> Pixels:
    """How much of the new picture is seen where the whole is painted: all of it up to the middle of the soft edge."""
    return np.minimum(mask.astype(np.uint16) * 2, OPAQUE).astype(np.uint8)


def surroundings(mask: Pixels, padding: int, width: int, height: int) -> Box | None:
    """Which part is painted where the whole is not: around all that a mask has, of the new picture's proportions.

    Args:
        mask: [H, W].
        padding: Pixels on each side.
        width: Of the picture that is made.
        height: Of the picture that is made.

    Returns:
        The part; None of a mask that has nothing.
    """
    box = Image.fromarray(mask).getbbox()
    if box is None:
        return None
    most_high, most_wide = mask.shape
    left, right = _padded(box[0], box[2], padding, most_wide)
    top, bottom = _padded(box[1], box[3], padding, most_high)
    if (right - left) * height > (bottom - top) * width:
        top, bottom = _grown(top, bottom, round((right - left) * height / width), most_high)
    else:
        left, right = _grown(left, right, round((bottom - top) * width / height), most_wide)
    return left, top, right, bottom


def _padded(first: int, last: int, padding: int, most: int) -> tuple[int, int]:
    return max(0, first - padding), min(most, last + padding)


def _grown(first: int, last: int, length: int, most: int) -> tuple[int, int]:
    """A range of at least a length on both its sides, moved to where there is room, cut where there is none."""
    length = min(max(length, last - first), most)
    begin = min(max(0, first - (length - (last - first)) // 2), most - length)
    return begin, begin + length
