"""Pictures of a request as arrays."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Picture: TypeAlias = Image.Image | npt.NDArray[np.uint8] | str | Path
EncodedPicture: TypeAlias = Picture | bytes
"""Bytes are those of a PNG, JPEG or WebP, which the server decodes."""


def file_bytes(picture: EncodedPicture) -> bytes | None:
    """Of a picture that is a file, which the server decodes; None of another one."""
    if isinstance(picture, str | Path):
        return Path(picture).read_bytes()
    return picture if isinstance(picture, bytes) else None


def stacked(pictures: Sequence[Picture]) -> npt.NDArray[np.uint8]:
    """[1, N, H, W, 3] of control images.

    Raises:
        ValueError: If they are of several sizes, or one is no picture.
    """
    arrays = [pixels(picture, "a control image") for picture in pictures]
    sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in arrays]
    if len(set(sizes)) > 1:
        raise ValueError(f"control images must be of one size; these are {', '.join(sizes)}")
    return np.stack(arrays)[None]


def pixels(picture: EncodedPicture, what: str, mode: str = "RGB") -> npt.NDArray[np.uint8]:
    """[H, W, 3] of RGB, [H, W] of L; files are turned as their EXIF says.

    Raises:
        ValueError: If it is no picture.
    """
    shape = ("H", "W", "3")[: 3 if mode == "RGB" else 2]
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != len(shape) or (mode == "RGB" and picture.shape[2] != 3):
            wanted = f"uint8 [{', '.join(shape)}]"
            raise ValueError(f"{what} is {picture.dtype} {list(picture.shape)}; wanted: {wanted}")
        return picture
    if isinstance(picture, Image.Image):
        return np.asarray(eight_bits(picture).convert(mode))
    if not isinstance(picture, str | Path):
        raise ValueError(f"{what} is of {type(picture).__name__}; wanted: a PIL image, a uint8 array, or a file")
    with Image.open(picture) as opened:
        return np.asarray(eight_bits(ImageOps.exif_transpose(opened)).convert(mode))


def eight_bits(picture: Image.Image) -> Image.Image:
    """16 bits of grey as 8, a depth map's: Pillow's own conversion makes white of all but the darkest."""
    return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)) if picture.mode == "I;16" else picture
