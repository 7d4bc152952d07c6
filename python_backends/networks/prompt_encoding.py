"""Prompt → embeddings, as diffusers' `encode_prompt` makes them, remembered by text and LoRA set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING

import torch
from cachetools import LRUCache

from ..common.errors import InvalidRequestError
from ..lora.files.lora_set import NO_LORAS, LoraSet
from ..lora.files.modules import TEXT_ENCODER, TEXT_ENCODER_2
from ..lora.patching.patcher import Patcher
from ..lora.patching.resident import ResidentLoras, device_bytes
from ..request.prompt_syntax import parse_weighted
from ..shared_memory.host_directory import host_cache_directory
from ..shared_memory.keyed_arrays import key_of
from .prompt_chunks import Chunk, chunks_of, encoder_inputs, weighted
from .runtimes import Runtime
from .textual_inversions import embedding_files, load_embeddings
from .token_encoding import TokenEncoders, normalised

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from ..lora.loading.catalogue import Catalogue
    from ..request.completed import CompletedRequest
    from .checkpoint import Checkpoint


KNOWN_CHUNKS = 256
"""Texts whose chunks are remembered between counting and encoding them."""


@dataclass(frozen=True)
class Text:
    """What is encoded, and how.

    Attributes:
        text: The prompt or negative prompt.
        clip_skip: As diffusers' of that name.
        chunks: Of the weighted syntax, how many the text fills or is filled up to; None: the plain syntax, one, to
            which the text is truncated.
    """

    text: str
    clip_skip: int | None = None
    chunks: int | None = None


@dataclass(frozen=True)
class Embedding:
    """One text's embedding in float32 on the CPU.

    Attributes:
        tokens: [tokens, width], what the UNet attends to; for the weighted syntax one chunk's after the other's.
        pooled: [pooled width] for SDXL; None for SD 1.5.
        truncated: Whether the text had more tokens than the encoders read; never of the weighted syntax.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor | None
    truncated: bool = False

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.tokens.nbytes + (0 if self.pooled is None else self.pooled.nbytes)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Views of its tensors, by name."""
        tensors = {"tokens": self.tokens} | ({} if self.pooled is None else {"pooled": self.pooled})
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    @cached_property
    def key(self) -> str:
        """Names its content."""
        return key_of(self.arrays)

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
        catalogue: Catalogue | None = None,
        patches: bool = False,
        runtime: Runtime | None = None,
    ) -> None:
        """Loads the text encoders and warms them up.

        Args:
            checkpoint: Whose they are.
            device: Where they compute.
            dtype: Of weights and activations.
            cache_bytes: Most bytes of embeddings that are remembered.
            lora_directory: Of canonical LoRAs; None for the server's.
            catalogue: Whose textual inversion embeddings become words.
            patches: Whether LoRAs are expected: what the first would wait for is done at once then.
            runtime: What evaluates the text encoders.

        Raises:
            EngineMismatchError: If engines are not for this machine, or not of this checkpoint.
            TensorRTUnavailableError: Without TensorRT or a GPU that engines need.
        """
        self._pipeline, runtime = checkpoint.load_text_pipeline(device, dtype), runtime or Runtime()
        parts = {name: getattr(self._pipeline, name, None) for name in (TEXT_ENCODER, TEXT_ENCODER_2)}
        encoders = {name: encoder for name, encoder in parts.items() if encoder is not None}
        patcher = Patcher(encoders, in_place=None if runtime.flavour is None else True)  # engines keep addresses
        engines = [runtime.text_encoder(name, encoder, patcher, device) for name, encoder in encoders.items()]
        if catalogue is not None:
            load_embeddings(self._pipeline, embedding_files(catalogue))
        if patches:
            patcher.warm_up()
        directory = lora_directory or host_cache_directory()
        self._loras = ResidentLoras(patcher, directory, most_bytes=device_bytes(device))
        self._device = device
        self._encoders = TokenEncoders(self._pipeline, device, engines)
        self._zero_when_absent = checkpoint.force_zeros_for_empty_prompt
        self._chunks_of = lru_cache(KNOWN_CHUNKS)(self._cut)
        self._cache: LRUCache[tuple[Text, LoraSet], Embedding] = LRUCache(
            cache_bytes, getsizeof=lambda embedding: embedding.nbytes
        )
        for texts in ([""], ["", ""]) if self._encoders.has_engines else ([""],):
            self._encode(texts)  # warms the encoders up

    def texts(self, request: CompletedRequest) -> tuple[Text | None, Text]:
        """Negative prompt and prompt of a request; None for a negative prompt that is not used or stands for zeros.

        As in diffusers, `clip_skip` is for the prompt alone.

        Raises:
            InvalidRequestError: If one of the weighted syntax has more chunks than the request may.
        """
        negative = request.negative_prompt
        unused = request.guidance_scale <= 1 or (negative is None and self._zero_when_absent)
        chunks = None
        if request.max_chunks is not None:
            chunks = self._count("PROMPT", request.prompt, request.max_chunks)
            if not unused:
                chunks = max(chunks, self._count("NEGATIVE_PROMPT", negative or "", request.max_chunks))
        return None if unused else Text(negative or "", None, chunks), Text(request.prompt, request.clip_skip, chunks)

    def encode(self, texts: Sequence[Text], loras: LoraSet = NO_LORAS) -> dict[Text, Embedding]:
        """Embeddings of all texts, those not remembered encoded in one batch per `clip_skip`, weighted ones singly.

        Args:
            texts: Any number.
            loras: What is to be patched into the text encoders.

        Returns:
            Text → embedding; remembered ones are those that were given before.

        Raises:
            LoraUnavailableError: If a file of the set is gone.
        """
        found = {text: self._cache[text, loras] for text in texts if (text, loras) in self._cache}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            self._loras.ensure(loras)
        new = {text: self._encode_weighted(text, text.chunks) for text in missing if text.chunks is not None}
        for clip_skip in dict.fromkeys(text.clip_skip for text in missing if text.chunks is None):
            batch = [text for text in missing if text.chunks is None and text.clip_skip == clip_skip]
            new |= zip(batch, self._encode([text.text for text in batch], clip_skip), strict=True)
        for text, embedding in new.items():
            if embedding.nbytes <= self._cache.maxsize:
                self._cache[text, loras] = embedding
        return found | new

    def _count(self, field: str, text: str, most: int) -> int:
        """Chunks that a text of the weighted syntax fills."""
        count = max(len(chunks) for chunks in self._chunks_of(text))
        if count > most:
            size = self._encoders.tokenizers[0].model_max_length - 2
            raise InvalidRequestError(f"{field} fills {count} chunks of {size} tokens; allowed: at most {most}")
        return count

    def _cut(self, text: str) -> list[list[Chunk]]:
        """A text's chunks for each encoder."""
        sections = parse_weighted(text)
        return [
            chunks_of(sections, partial(self._encoders.tokens, encoder=number), tokenizer.model_max_length - 2)
            for number, tokenizer in enumerate(self._encoders.tokenizers)
        ]

    def _encode_weighted(self, text: Text, count: int) -> Embedding:
        """Pooled: of the first chunk, without weights, as A1111 takes it."""
        pairs = zip(self._chunks_of(text.text), self._encoders.tokenizers, strict=True)
        inputs = [encoder_inputs(chunks, count, tokenizer) for chunks, tokenizer in pairs]
        states, pooled = self._encoders([ids for ids, _ in inputs], text.clip_skip)
        parts = [weighted(state, weights) for state, (_, weights) in zip(states, inputs, strict=True)]
        return Embedding(torch.cat(parts, dim=-1).flatten(0, 1), None if pooled is None else pooled[0].clone())

    def _encode(self, texts: list[str], clip_skip: int | None = None) -> list[Embedding]:
        texts = [normalised(text, self._encoders.tokenizers[0]) for text in texts]
        if clip_skip is None and not self._encoders.has_engines:
            encoded = self._pipeline.encode_prompt(
                prompt=texts, device=self._device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            tokens = encoded[0].detach().to("cpu", torch.float32)
            pooled = encoded[2].detach().to("cpu", torch.float32) if len(encoded) == 4 else None
        else:
            states, pooled = self._encoders(self._encoders.padded(texts), clip_skip)
            tokens = torch.cat(states, dim=-1)
        most = self._encoders.tokenizers[0].model_max_length
        return [
            Embedding(
                tokens=tokens[row].clone(),
                pooled=None if pooled is None else pooled[row].clone(),
                truncated=length > most,
            )
            for row, length in enumerate(self._encoders.lengths(texts))
        ]
