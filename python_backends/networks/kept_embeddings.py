"""Prompts' embeddings in shared memory: models hand each other keys, and who lacks one has the text encoded again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..common.errors import EmbeddingsUnavailableError
from ..shared_memory.host_cache import HostCacheFullError, host_cache_directory
from ..shared_memory.keyed_arrays import KeyedArrays

if TYPE_CHECKING:
    from pathlib import Path

    from .prompt_encoding import Embedding

MAX_BYTES, MAX_SHARE = 2**28, 0.25
"""Embeddings in memory at a time, and their most of the machine's shared memory."""

Embeddings = tuple[torch.Tensor, torch.Tensor | None]
"""Of negative prompt and prompt: [2, tokens, width], and for SDXL [2, pooled width]; float32 on the CPU."""


class KeptEmbeddings:
    """The server's embeddings by content, each text's by itself. A cache: nobody holds what lies in it."""

    def __init__(self, directory: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        """Opens the cache.

        Args:
            directory: Made if need be; None for that of this process's server.
            max_bytes: Its bound.
        """
        self._arrays = KeyedArrays(directory or host_cache_directory() / "embeddings", max_bytes, MAX_SHARE)

    def put(self, embedding: Embedding) -> str:
        """Keeps an embedding; its key.

        Raises:
            EmbeddingsUnavailableError: If there is no room.
        """
        try:
            return self._arrays.put(embedding.arrays, embedding.key)
        except HostCacheFullError as error:
            raise EmbeddingsUnavailableError(f"PROMPT: no room for its embedding: {error}") from error

    def pair(self, negative: str | None, prompt: str) -> Embeddings:
        """What the UNet takes for two keys; None stands for zeros.

        Raises:
            EvictedError: If one has gone.
        """
        found = self._arrays.get(prompt)
        other = {name: np.zeros_like(array) for name, array in found.items()}
        if negative is not None:
            other = self._arrays.get(negative)
        stacked = {name: torch.from_numpy(np.stack([other[name], array])) for name, array in found.items()}
        return stacked["tokens"], stacked.get("pooled")
