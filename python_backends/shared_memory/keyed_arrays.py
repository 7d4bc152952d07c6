"""Arrays in shared memory under keys of their content: what is large goes from process to process once, as a file."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

from safetensors.numpy import load_file, save_file

from .host_cache import HostCache, Lease

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

HEADER_BYTES = 512


class KeyedArrays:
    """Sets of named arrays; the least recently used go first, leased ones never."""

    def __init__(self, directory: Path, max_bytes: int, max_share: float) -> None:
        """Opens the cache.

        Args:
            directory: Made if need be.
            max_bytes: Its bound.
            max_share: Most of the machine's shared memory, in which tensors travel too.
        """
        directory.mkdir(mode=0o700, exist_ok=True)
        bound = min(max_bytes, int(max_share * shutil.disk_usage(directory).total))
        self._cache = HostCache(directory, bound, wait_s=0.0)

    def put(self, arrays: Mapping[str, np.ndarray], key: str | None = None) -> str:
        """Keeps contiguous arrays; their key, which a caller that puts them often may pass again.

        Raises:
            HostCacheFullError: If there is no room.
        """
        key = key or key_of(arrays)
        if self._cache.find(key) is None:
            with self._cache.reserve(sum(array.nbytes for array in arrays.values()) + HEADER_BYTES) as reservation:
                save_file(dict(arrays), reservation.path)
                reservation.publish(key)
        return key

    def has(self, key: str) -> bool:
        """Whether there are arrays of a key, which count as just used."""
        return self._cache.find(key) is not None

    def lease(self, key: str) -> Lease:
        """Keeps the arrays of a key for as long as they are needed.

        Raises:
            EvictedError: If they have gone.
        """
        return Lease(self._cache.directory / f"{key}.safetensors")

    def get(self, key: str) -> dict[str, np.ndarray]:
        """The arrays of a key, copied.

        Raises:
            EvictedError: If they have gone.
        """
        with self.lease(key) as lease:
            return load_file(lease.path)


def key_of(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, types, shapes and values, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
