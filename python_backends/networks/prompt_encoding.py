"""Prompt → embeddings, through diffusers' own `encode_prompt`, remembered by text and LoRA set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from cachetools import LRUCache

from ..lora.files.lora_set import NO_LORAS, LoraSet
from ..lora.files.modules import TEXT_ENCODER, TEXT_ENCODER_2
from ..lora.patching.patcher import Patcher
from ..lora.patching.resident import ResidentLoras
from ..shared_memory.host_directory import host_cache_directory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .checkpoint import Checkpoint


@dataclass(frozen=True)
class Embedding:
    """One text's embedding in float32 on the CPU.

    Attributes:
        tokens: [tokens, width], what the UNet attends to.
        pooled: [pooled width] for SDXL; None for SD 1.5.
        truncated: Whether the text had more tokens than the encoders read.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor | None
    truncated: bool = False

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.tokens.nbytes + (0 if self.pooled is None else self.pooled.nbytes)


class PromptEncoder:
    """The text encoders of a checkpoint over a byte-bounded LRU cache of texts.

    Attributes:
        zeros: The embedding of zeros.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        cache_bytes: int = 256 * 2**20,
        lora_directory: Path | None = None,
    ) -> None:
        self._pipeline = checkpoint.load_text_pipeline(device, dtype)
        encoders = {name: getattr(self._pipeline, name, None) for name in (TEXT_ENCODER, TEXT_ENCODER_2)}
        patcher = Patcher({name: encoder for name, encoder in encoders.items() if encoder is not None})
        self._loras = ResidentLoras(patcher, lora_directory or host_cache_directory())
        self._device = device
        self._zero_when_absent = checkpoint.force_zeros_for_empty_prompt
        self._cache: LRUCache[tuple[str, LoraSet], Embedding] = LRUCache(
            cache_bytes, getsizeof=lambda embedding: embedding.nbytes
        )
        empty = self._encode([""])[0]
        self.zeros = Embedding(
            torch.zeros_like(empty.tokens), None if empty.pooled is None else torch.zeros_like(empty.pooled)
        )

    def encode(self, texts: Sequence[str], loras: LoraSet = NO_LORAS) -> tuple[dict[str, Embedding], set[str]]:
        """Embeddings of all texts, those not remembered encoded in one batch.

        Args:
            texts: Any number.
            loras: What is to be patched into the text encoders.

        Returns:
            Text → embedding, and the texts that had to be encoded.

        Raises:
            LoraUnavailableError: If a file of the set is gone.
        """
        found = {text: self._cache[text, loras] for text in texts if (text, loras) in self._cache}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            self._loras.ensure(loras)
        for text, embedding in zip(missing, self._encode(missing), strict=True):
            found[text] = embedding
            if embedding.nbytes <= self._cache.maxsize:
                self._cache[text, loras] = embedding
        return found, set(missing)

    def negative(self, text: str | None) -> str | None:
        """The text to encode for a negative prompt; None where diffusers takes zeros (an absent one on SDXL)."""
        return text if text is not None or self._zero_when_absent else ""

    def _encode(self, texts: list[str]) -> list[Embedding]:
        if not texts:
            return []
        encoded = self._pipeline.encode_prompt(
            prompt=texts, device=self._device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        tokens = encoded[0].detach().to("cpu", torch.float32)
        pooled = encoded[2].detach().to("cpu", torch.float32) if len(encoded) == 4 else None
        tokenizer = self._pipeline.tokenizer
        lengths = [len(ids) for ids in tokenizer(texts).input_ids]
        return [
            Embedding(
                tokens=tokens[row].clone(),
                pooled=None if pooled is None else pooled[row].clone(),
                truncated=length > tokenizer.model_max_length,
            )
            for row, length in enumerate(lengths)
        ]
