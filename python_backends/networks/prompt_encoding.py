"""Prompt → embeddings, as diffusers' `encode_prompt` makes them, remembered by text and LoRA set."""

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
from .token_encoding import TokenEncoders

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..request.completed import CompletedRequest
    from .checkpoint import Checkpoint


@dataclass(frozen=True)
class Text:
    """What is encoded, and how.

    Attributes:
        text: The prompt or negative prompt.
        clip_skip: As diffusers' of that name.
    """

    text: str
    clip_skip: int | None = None


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

    def zeros(self) -> Embedding:
        """Zeros of the same shape."""
        return Embedding(torch.zeros_like(self.tokens), None if self.pooled is None else torch.zeros_like(self.pooled))


class PromptEncoder:
    """The text encoders of a checkpoint over a byte-bounded LRU cache of texts."""

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
        self._encoders = TokenEncoders(self._pipeline, device)
        self._zero_when_absent = checkpoint.force_zeros_for_empty_prompt
        self._cache: LRUCache[tuple[Text, LoraSet], Embedding] = LRUCache(
            cache_bytes, getsizeof=lambda embedding: embedding.nbytes
        )
        self._encode([""])  # warms the encoders up

    def texts(self, request: CompletedRequest) -> tuple[Text | None, Text]:
        """Negative prompt and prompt of a request; None for a negative prompt that is not used or stands for zeros.

        As in diffusers, `clip_skip` is for the prompt alone.
        """
        negative = request.negative_prompt
        if request.guidance_scale <= 1 or (negative is None and self._zero_when_absent):
            return None, Text(request.prompt, request.clip_skip)
        return Text(negative or ""), Text(request.prompt, request.clip_skip)

    def encode(self, texts: Sequence[Text], loras: LoraSet = NO_LORAS) -> tuple[dict[Text, Embedding], set[Text]]:
        """Embeddings of all texts, those not remembered encoded in one batch for each `clip_skip`.

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
        for clip_skip in dict.fromkeys(text.clip_skip for text in missing):
            batch = [text for text in missing if text.clip_skip == clip_skip]
            for text, embedding in zip(batch, self._encode([text.text for text in batch], clip_skip), strict=True):
                found[text] = embedding
                if embedding.nbytes <= self._cache.maxsize:
                    self._cache[text, loras] = embedding
        return found, set(missing)

    def _encode(self, texts: list[str], clip_skip: int | None = None) -> list[Embedding]:
        if clip_skip is None:
            encoded = self._pipeline.encode_prompt(
                prompt=texts, device=self._device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            tokens = encoded[0].detach().to("cpu", torch.float32)
            pooled = encoded[2].detach().to("cpu", torch.float32) if len(encoded) == 4 else None
        else:
            ids = [
                tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
                for tokenizer in self._encoders.tokenizers
            ]
            states, pooled = self._encoders(ids, clip_skip)
            tokens = torch.cat(states, dim=-1)
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
