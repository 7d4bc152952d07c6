"""Pictures for ControlNets in shared memory: each crosses from process to process once, as a file. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..common.errors import ImageUnavailableError
from ..shared_memory.host_cache import EvictedError, HostCacheFullError, Lease, host_cache_directory
from ..shared_memory.keyed_arrays import KeyedArrays

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES, MAX_SHARE = 2**30, 0.25
"""Pictures in memory at a time, and their most of the machine's shared memory; those of running requests are leased and
stay."""

GONE = "CONTROL_IMAGES: the picture has gone before it was used; try again"


class ControlImages:
    """The server's pictures by content."""

    def __init__(self, directory: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        """Opens the cache.

        Args:
            directory: Made if need be; None for that of this process's server.
            max_bytes: Its bound.
        """
        self._arrays = KeyedArrays(directory or host_cache_directory() / "images", max_bytes, MAX_SHARE)

    def put(self, image: np.ndarray, height: int, width: int) -> str:
        """Keeps a picture, resized as diffusers' `VaeImageProcessor` does it.

        Args:
            image: [H, W, 3] uint8.
            height: Of the picture that is kept.
            width: Of the picture that is kept.

        Returns:
            Its key.

        Raises:
            ImageUnavailableError: If there is no room.
        """
        if image.shape[:2] != (height, width):
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
        try:
            return self._arrays.put({"image": np.ascontiguousarray(image)})
        except HostCacheFullError as error:
            raise ImageUnavailableError(f"CONTROL_IMAGES: {error}") from error

    def lease(self, key: str) -> Lease:
        """Keeps a picture for as long as a request needs it.

        Raises:
            ImageUnavailableError: If it has gone.
        """
        try:
            return self._arrays.lease(key)
        except EvictedError as error:
            raise ImageUnavailableError(GONE) from error

    def get(self, key: str) -> np.ndarray:
        """A picture: [H, W, 3] uint8.

        Raises:
            ImageUnavailableError: If it is not there.
        """
        try:
            return self._arrays.get(key)["image"]
        except EvictedError as error:
            raise ImageUnavailableError(GONE) from error
