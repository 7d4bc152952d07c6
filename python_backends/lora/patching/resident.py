"""The LoRA set that is patched into the models of one process."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from cachetools import LRUCache
from safetensors import SafetensorError

from ...common.errors import LoraUnavailableError
from ..files.canonical import CanonicalLora
from ..files.lora_set import NO_LORAS, LoraSet
from .patcher import KeptWeights, Patcher
from .prepared import PreparedLora

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from .beside import BesideLoras

KEPT_BYTES = 2**29
"""Weights with LoRAs in them that are kept on the CPU, in bytes: a set that comes back is then only pointed to."""

KNOWN_RANKS = 4096
"""LoRAs whose rank is remembered."""

DEVICE_BYTES, DEVICE_SHARE, FREE_SHARE = 2**30, 0.1, 0.5
"""LoRAs that are kept on a GPU, of which SDXL's of rank 64 over all modules has 0.4 · 10⁹ bytes: what is reckoned with
where the GPU is not known; most of its memory, and of what of it is free, as shares."""


def device_bytes(device: torch.device) -> int:
    """What LoRAs kept on a device may take of its memory, once everything else has been loaded."""
    if device.type != "cuda":
        return DEVICE_BYTES
    free, total = torch.cuda.mem_get_info(device)
    return min(int(DEVICE_SHARE * total), int(FREE_SHARE * free))


class ResidentLoras:
    """Makes one LoRA set at a time resident in some models.

    Who holds leases on the set's files finds them; nothing stays mapped afterwards. On a GPU the
    LoRAs used last stay there, packed, so that a set that comes back is not sent again; on the CPU the weights with
    them in.

    Attributes:
        current: The resident set.
    """

    def __init__(
        self,
        patcher: Patcher,
        directory: Path,
        beside: BesideLoras | None = None,
        most_bytes: int = DEVICE_BYTES,
    ) -> None:
        """Starts with no LoRAs.

        Args:
            patcher: Of the models.
            directory: The host cache.
            beside: Holds LoRAs beside the weights; None where that is not done.
            most_bytes: That LoRAs kept on a GPU take.
        """
        self._patcher, self._beside = patcher, beside
        self._kept: LRUCache[LoraSet, KeptWeights] = LRUCache(KEPT_BYTES, getsizeof=lambda kept: kept.nbytes)
        self._ranks: LRUCache[str, int | None] = LRUCache(KNOWN_RANKS)
        self._directory = directory
        self.current: LoraSet = NO_LORAS
        self._consistent = True
        self._prepared: LRUCache[str, PreparedLora] = LRUCache(most_bytes, getsizeof=lambda lora: lora.nbytes)
        self._uploads: dict[str, Future[CanonicalLora]] = {}
        self._too_large: set[str] = set()
        self._stream: torch.cuda.Stream | None = None
        self._thread = ThreadPoolExecutor(1, "lora-upload")

    def upload(self, keys: Collection[str]) -> None:
        """Starts sending LoRAs to the device, on a stream of their own beside whatever it computes. Waits for nothing.

        One that cannot be read is not an error yet: `ensure` raises it, if the LoRA is still wanted then.
        """
        device = self._patcher.uploads_to() if keys else None
        if device is None:
            return
        if device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(device)
        for key in [key for key, upload in self._uploads.items() if upload.done()]:
            self._take(key)
        for key in keys:
            if key not in self._prepared and key not in self._uploads and key not in self._too_large:
                self._uploads[key] = self._thread.submit(self._read_aside, key)

    def ensure(self, wanted: LoraSet) -> float:
        """Makes a set resident.

        Returns:
            The milliseconds that it took; 0.0 if it was resident, or its weights were kept.

        Raises:
            LoraUnavailableError: If one of its files is gone; the models are as they were.
        """
        if wanted == self.current and self._consistent:
            return 0.0
        start, kept = time.perf_counter(), self.keeps(wanted)
        if kept:
            self._patcher.take(self._kept[wanted])
        else:
            self._patch(wanted)
        self.current, self._consistent = wanted, True
        return 0.0 if kept else 1000 * (time.perf_counter() - start)

    def keeps(self, loras: LoraSet) -> bool:
        """Whether the weights with a set in them are there."""
        return loras in self._kept

    def can_keep(self, count: int) -> bool:
        """Whether the weights of so many sets can be there at a time, as large as those that are."""
        return bool(self._kept) and count * max(kept.nbytes for kept in self._kept.values()) <= KEPT_BYTES

    def _patch(self, wanted: LoraSet) -> None:
        loras = [(self._lora(key), scale) for key, scale in wanted]
        self._consistent = False
        self._patcher.apply(loras)
        kept = self._patcher.kept() if isinstance(self._patcher, Patcher) else None
        if kept is not None and kept.nbytes <= KEPT_BYTES:
            self._kept[wanted] = kept

    def rank(self, loras: LoraSet) -> int | None:
        """Of a set's factors beside the weights, all its LoRAs together; None for a set that cannot be there.

        Raises:
            LoraUnavailableError: If one of its files is gone.
        """
        if self._beside is None:
            return None
        for key, _ in loras:
            if key not in self._ranks:
                self._ranks[key] = self._beside.rank(self._lora(key))
        ranks = [self._ranks[key] for key, _ in loras]
        return None if None in ranks else sum(rank or 0 for rank in ranks)

    def fits_beside(self, ranks: Sequence[int]) -> bool:
        """Whether there is room for sets of these ranks at a time."""
        return self._beside is not None and self._beside.fits(ranks)

    def use_beside(self, sets: Sequence[LoraSet]) -> None:
        """Has each row of the calls to come take its set beside the weights; with none at all, ends that.

        Raises:
            LoraUnavailableError: If a file is gone.
        """
        if self._beside is not None:
            self._beside.use(sets if any(sets) else (), self._lora)

    def _lora(self, key: str) -> CanonicalLora:
        if key in self._uploads:
            self._take(key)
        known = self._prepared.get(key)
        return self._keep(key, self._read(key)) if known is None else known

    def _read(self, key: str) -> CanonicalLora:
        try:
            return self._patcher.prepare(CanonicalLora.open(self._directory / f"{key}.safetensors"))
        except (OSError, SafetensorError) as error:
            raise LoraUnavailableError(f"LORAS: {key} is not in the host cache: {error}") from None

    def _read_aside(self, key: str) -> CanonicalLora:
        with torch.cuda.stream(self._stream):
            lora = self._read(key)
            if self._stream is not None:
                self._stream.synchronize()
        return lora

    def _take(self, key: str) -> None:
        """Waits for an upload and keeps what came; on a failure `_lora` reads it itself and says why it cannot."""
        upload = self._uploads.pop(key)
        if upload.exception() is None:
            lora = upload.result()
            if isinstance(lora, PreparedLora):
                lora.record_stream()
            self._keep(key, lora)

    def _keep(self, key: str, lora: CanonicalLora) -> CanonicalLora:
        if isinstance(lora, PreparedLora):
            if lora.nbytes <= self._prepared.maxsize:
                self._prepared[key] = lora
            else:
                self._too_large.add(key)
        return lora
