"""Requests' pictures in shared memory: each crosses from process to process once, as a file. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..common.errors import ImageUnavailableError
from .host_cache import EvictedError, HostCacheFullError, Lease, host_cache_directory
from .keyed_arrays import KeyedArrays

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES, MAX_SHARE = 2**30, 0.25
"""Pictures in memory at a time, and their most of the machine's shared memory; those of running requests are leased and
stay."""

GONE = "a picture of the request has gone before it was used; try again"


class Pictures:
    """The server's pictures by content: [H, W, 3] uint8.

    With a fourth channel they are what an inpainting ControlNet is steered by: where that is 0, nothing is known of the
    picture. Masks are [H, W]: 1 where the picture is to be painted anew, else 0.
    """

    def __init__(self, directory: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        """Opens the cache.

        Args:
            directory: Made if need be; None for that of this process's server.
            max_bytes: Its bound.
        """
        self._arrays = KeyedArrays(directory or host_cache_directory() / "images", max_bytes, MAX_SHARE)

    def put(self, picture: np.ndarray) -> str:
        """Keeps a picture or a mask; its key.

        Raises:
            ImageUnavailableError: If there is no room.
        """
        try:
            return self._arrays.put({"image": np.ascontiguousarray(picture)})
        except HostCacheFullError as error:
            raise ImageUnavailableError(str(error)) from error

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
        """A picture, or a mask.

        Raises:
            ImageUnavailableError: If it is not there.
        """
        try:
            return self._arrays.get(key)["image"]
        except EvictedError as error:
            raise ImageUnavailableError(GONE) from error
