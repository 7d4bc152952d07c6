"""Pictures for ControlNets in shared memory: each crosses from process to process once, as a file. Needs no torch."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

from ..common.errors import ImageUnavailableError
from ..shared_memory.host_cache import EvictedError, HostCache, HostCacheFullError, Lease, host_cache_directory

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES, MAX_SHARE = 2**30, 0.25
"""Pictures in memory at a time, and their most of the machine's shared memory, in which tensors travel too; those of
running requests are leased and stay."""


class ControlImages:
    """The server's pictures by content."""

    def __init__(self, directory: Path | None = None, max_bytes: int | None = None) -> None:
        """Opens the cache.

        Args:
            directory: Made if need be; None for that of this process's server.
            max_bytes: Its bound; None for what suits the machine.
        """
        directory = directory or host_cache_directory() / "images"
        directory.mkdir(mode=0o700, exist_ok=True)
        if max_bytes is None:
            max_bytes = min(MAX_BYTES, int(MAX_SHARE * shutil.disk_usage(directory).total))
        self._cache = HostCache(directory, max_bytes, wait_s=0.0)

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
        image = np.ascontiguousarray(image)
        key = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        if self._cache.find(key) is None:
            try:
                with self._cache.reserve(image.nbytes + 256) as reservation:
                    save_file({"image": image}, reservation.path)
                    reservation.publish(key)
            except HostCacheFullError as error:
                raise ImageUnavailableError(f"CONTROL_IMAGES: {error}") from error
        return key

    def lease(self, key: str) -> Lease:
        """Keeps a picture for as long as a request needs it.

        Raises:
            ImageUnavailableError: If it has gone.
        """
        try:
            return Lease(self._cache.directory / f"{key}.safetensors")
        except EvictedError as error:
            raise ImageUnavailableError("CONTROL_IMAGES: the picture has gone before it was used; try again") from error

    def get(self, key: str) -> np.ndarray:
        """A picture: [H, W, 3] uint8.

        Raises:
            ImageUnavailableError: If it is not there.
        """
        with self.lease(key) as lease:
            return load_file(lease.path)["image"]
