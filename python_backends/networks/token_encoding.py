"""Tokens → embeddings, from any layer of the text encoders."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffusers import DiffusionPipeline
    from transformers import CLIPTokenizer

    from ..tensorrt.networks import EngineTextEncoder


class TokenEncoders:
    """The text encoders of a pipeline, behind its tokenisers.

    They give what diffusers' `encode_prompt` takes of them. SD 1.5's would not give other layers itself: diffusers 0.42
    looks for the last norm in `text_model`, which transformers' CLIPTextModel no longer has.

    Attributes:
        tokenizers: One for each encoder.
        has_engines: Whether engines compute what they can.
    """

    def __init__(
        self, pipeline: DiffusionPipeline, device: torch.device, engines: Sequence[EngineTextEncoder | None] = ()
    ) -> None:
        """Takes the parts of a pipeline.

        Args:
            pipeline: With its text encoders on their device.
            device: Theirs.
            engines: For each encoder, what computes its usual layers; none: its modules do.
        """
        names = [name for name in ("", "_2") if getattr(pipeline, f"text_encoder{name}", None) is not None]
        self.tokenizers = [getattr(pipeline, f"tokenizer{name}") for name in names]
        self._encoders = [getattr(pipeline, f"text_encoder{name}") for name in names]
        self._engines = list(engines) or [None] * len(names)
        self.has_engines, self._device = any(self._engines), device
        self._convert = pipeline.maybe_convert_prompt
        self._continued = [_continued(tokenizer.added_tokens_encoder) for tokenizer in self.tokenizers]

    def padded(self, texts: list[str]) -> list[torch.Tensor]:
        """For each encoder ids [texts, tokens], padded and truncated as `encode_prompt` does it."""
        return [
            tokenizer(
                self._convert(texts, tokenizer), padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
            for tokenizer in self.tokenizers
        ]

    def lengths(self, texts: list[str]) -> list[int]:
        """Of texts for the first encoder: tokens, with those that begin and end them."""
        tokenizer = self.tokenizers[0]
        return [len(ids) for ids in tokenizer(self._convert(texts, tokenizer)).input_ids]

    def tokens(self, text: str, encoder: int) -> list[list[int]]:
        """A text's ids for one encoder, the vectors of a textual inversion embedding together."""
        tokenizer = self.tokenizers[encoder]
        converted = self._convert(normalised(text, tokenizer), tokenizer)
        found: list[list[int]] = []
        for token in tokenizer(converted, add_special_tokens=False).input_ids:
            if found and token in self._continued[encoder]:
                found[-1].append(token)
            else:
                found.append([token])
        return found

    def __call__(
        self, tokens: Sequence[torch.Tensor], clip_skip: int | None
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Hidden states, and SDXL's pooled ones, in float32 on the CPU.

        Args:
            tokens: For each encoder ids [B, tokens].
            clip_skip: As diffusers' of that name: SD 1.5 counts from the last layer, SDXL from the one before.

        Returns:
            For each encoder [B, tokens, width]; [B, pooled width] for SDXL, else None.
        """
        skipped, states, pooled = clip_skip or 0, [], None
        with torch.no_grad():
            for ids, encoder, engine in zip(tokens, self._encoders, self._engines, strict=True):
                if engine is not None and not skipped and (found := engine(ids)) is not None:
                    states.append(found[0].to("cpu", torch.float32))
                    pooled = found[1]
                    continue
                output = encoder(ids.to(self._device), output_hidden_states=True)
                if len(self._encoders) == 1:
                    norm = getattr(encoder, "text_model", encoder).final_layer_norm
                    hidden = norm(output.hidden_states[-1 - skipped])
                else:
                    hidden = output.hidden_states[-2 - skipped]
                    pooled = output[0]  # the last encoder's counts
                states.append(hidden.to("cpu", torch.float32))
        return states, None if pooled is None else pooled.to("cpu", torch.float32)


def normalised(text: str, tokenizer: CLIPTokenizer) -> str:
    """A text as the tokeniser takes it, which is in lower case: it finds words that were added to it in any case.

    diffusers looks for an embedding's further vectors by the words of the text as it stands, and would leave them out
    of one in another case.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    return text if normalizer is None else str(normalizer.normalize_str(text))


def _continued(added: Mapping[str, int]) -> set[int]:
    """Of added tokens, those that stand for the further vectors of an embedding: diffusers calls them `name_1` …."""
    bases = {token: re.sub(r"_\d+$", "", token) for token in added}
    return {number for token, number in added.items() if bases[token] != token and bases[token] in added}
