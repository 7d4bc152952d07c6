"""The LoRA set that is patched into the models of one process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cachetools import LRUCache
from safetensors import SafetensorError

from ..errors import LoraUnavailableError
from .canonical import CanonicalLora
from .lora_set import NO_LORAS, LoraSet
from .prepared import PreparedLora

if TYPE_CHECKING:
    from pathlib import Path

    from .patcher import Patcher

DEVICE_BYTES = 2**30
"""LoRAs that are kept on a GPU, in bytes: SDXL's of rank 64 over all modules has about 0.4 · 10⁹."""


class ResidentLoras:
    """Makes one LoRA set at a time resident in some models.

    The caller holds leases on the set's files while it asks for them; nothing stays mapped afterwards. On a GPU the
    LoRAs used last stay there, packed, so that a set that comes back is not sent again.

    Attributes:
        current: The resident set.
    """

    def __init__(self, patcher: Patcher, directory: Path) -> None:
        """Starts with no LoRAs.

        Args:
            patcher: Of the models.
            directory: The host cache.
        """
        self._patcher = patcher
        self._directory = directory
        self.current: LoraSet = NO_LORAS
        self._consistent = True
        self._prepared: LRUCache[str, PreparedLora] = LRUCache(DEVICE_BYTES, getsizeof=lambda lora: lora.nbytes)

    def ensure(self, wanted: LoraSet) -> float:
        """Makes a set resident.

        Returns:
            The milliseconds that it took; 0.0 if it was resident.

        Raises:
            LoraUnavailableError: If one of its files is gone; the models are as they were.
        """
        if wanted == self.current and self._consistent:
            return 0.0
        start = time.perf_counter()
        loras = [(self._lora(key), scale) for key, scale in wanted]
        self._consistent = False
        self._patcher.apply(loras)
        self.current, self._consistent = wanted, True
        return 1000 * (time.perf_counter() - start)

    def _lora(self, key: str) -> CanonicalLora:
        known = self._prepared.get(key)
        if known is not None:
            return known
        try:
            lora = self._patcher.prepare(CanonicalLora.open(self._directory / f"{key}.safetensors"))
        except (OSError, SafetensorError) as error:
            raise LoraUnavailableError(f"LORAS: {key} is not in the host cache: {error}") from None
        if isinstance(lora, PreparedLora) and lora.nbytes <= DEVICE_BYTES:
            self._prepared[key] = lora
        return lora
