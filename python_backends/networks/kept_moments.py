"""What latents of pictures are drawn from, in shared memory: models hand each other keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..common.errors import ImageUnavailableError
from ..shared_memory.host_cache import HostCacheFullError, host_cache_directory
from ..shared_memory.keyed_arrays import KeyedArrays

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES, MAX_SHARE = 2**28, 0.25
"""Moments in memory at a time, and their most of the machine's shared memory: half a MiB for a picture of 1024²."""


class KeptMoments:
    """The server's moments by content, [1, 2·C, h, w] float32. A cache: nobody holds what lies in it."""

    def __init__(self, directory: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        """Opens the cache.

        Args:
            directory: Made if need be; None for that of this process's server.
            max_bytes: Its bound.
        """
        self._arrays = KeyedArrays(directory or host_cache_directory() / "moments", max_bytes, MAX_SHARE)

    def put(self, moments: torch.Tensor) -> str:
        """Keeps a picture's moments; their key.

        Raises:
            ImageUnavailableError: If there is no room.
        """
        try:
            return self._arrays.put({"moments": moments.contiguous().numpy()})
        except HostCacheFullError as error:
            raise ImageUnavailableError(f"no room for what a picture is encoded to: {error}") from error

    def has(self, key: str) -> bool:
        """Whether they are there; they count as just used."""
        return self._arrays.has(key)

    def get(self, key: str) -> torch.Tensor:
        """The moments of a key.

        Raises:
            EvictedError: If they have gone.
        """
        return torch.from_numpy(self._arrays.get(key)["moments"])
