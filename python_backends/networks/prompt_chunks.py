"""Weighted prompts as chunks of as many tokens as a text encoder reads, cut where A1111 cuts them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import CLIPTokenizer

    from ..request.prompt_syntax import Section

COMMA_BACKTRACK = 20
"""A chunk that is full ends after its last comma instead, if that is among its last so many tokens."""


@dataclass
class Chunk:
    """Tokens without those that begin and end a text, and the weight of each."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, token: int, weight: float) -> None:
        """Appends a token."""
        self.tokens.append(token)
        self.weights.append(weight)

    def cut(self, start: int) -> Chunk:
        """Takes what follows out."""
        rest = Chunk(self.tokens[start:], self.weights[start:])
        del self.tokens[start:], self.weights[start:]
        return rest


def chunks_of(sections: Sequence[Section], tokenise: Callable[[str], list[list[int]]], size: int) -> list[Chunk]:
    """At least one chunk; every BREAK begins another, even an empty one, except at the very end.

    Args:
        sections: Of one prompt.
        tokenise: Gives a fragment's tokens, those together that stay in one chunk: the vectors of an embedding.
        size: Most tokens of a chunk.
    """
    commas = tokenise(",")
    chunks = [Chunk()]
    for number, section in enumerate(sections):
        if number > 0:
            chunks.append(Chunk())
        last_comma = None
        for fragment in section:
            for tokens in tokenise(fragment.text):
                chunk, is_comma = chunks[-1], [tokens] == commas
                if len(chunk.tokens) == size:
                    far = last_comma is None or size - last_comma > COMMA_BACKTRACK or is_comma
                    chunks.append(chunk.cut(size if last_comma is None or far else last_comma + 1))
                    last_comma = None
                elif is_comma:
                    last_comma = len(chunk.tokens)
                if len(chunks[-1].tokens) + len(tokens) > size:
                    chunks.append(Chunk())
                    last_comma = None
                for token in tokens:
                    chunks[-1].add(token, fragment.weight)
    if len(chunks) > 1 and not chunks[-1].tokens:
        chunks.pop()
    return chunks


def encoder_inputs(chunks: Sequence[Chunk], count: int, tokenizer: CLIPTokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and weights, both [count, tokens]; chunks that are lacking are those of the empty text.

    A chunk begins, ends and is padded as the tokeniser does it to a text of its own, all with weight 1.
    """
    length = tokenizer.model_max_length
    ids = torch.full((count, length), tokenizer.pad_token_id)
    weights = torch.ones(count, length)
    ids[:, 0] = tokenizer.bos_token_id
    for row in range(count):
        chunk = chunks[row] if row < len(chunks) else Chunk()
        end = 1 + len(chunk.tokens)
        ids[row, 1:end] = torch.tensor(chunk.tokens, dtype=torch.long)
        weights[row, 1:end] = torch.tensor(chunk.weights)
        ids[row, end] = tokenizer.eos_token_id
    return ids, weights


def weighted(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Hidden states [chunks, tokens, width], each token's times its weight, each chunk with the mean that it had.

    A1111's "Original" emphasis.
    """
    multiplied = states * weights[:, :, None]
    restored = multiplied * (states.mean((1, 2), keepdim=True) / multiplied.mean((1, 2), keepdim=True))
    return torch.where((weights == 1).all(1)[:, None, None], states, restored)
