"""What `text_encoder` says of a request's prompts: where their embeddings are, and how they were made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from .json_text import read_json

EmbeddingKey = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
LoraKey = Annotated[str, StringConstraints(pattern="^[0-9a-f]{16,64}$")]


@dataclass(frozen=True)
class Encoding:
    """Keys of a request's embeddings in shared memory; who finds one gone has the prompts encoded again.

    Attributes:
        negative: Of the negative prompt's; None stands for zeros.
        prompt: Of the prompt's.
        ms: What encoding took.
        prompt_truncated: Whether the prompt had more tokens than the encoders read.
        loras: The LoRA set that was patched into the text encoders.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    negative: EmbeddingKey | None
    prompt: EmbeddingKey
    ms: float
    prompt_truncated: bool
    loras: Annotated[tuple[tuple[LoraKey, float], ...], Field(max_length=64)] = ()

    def to_json(self) -> str:
        """As it travels between models."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Encoding:
        """What `to_json` wrote.

        Raises:
            InvalidRequestError: If the text is anything else (a client called an inner model by itself).
        """
        return read_json(cls, text, "ENCODING is not what `text_encoder` writes")
