"""What encoders say of a request: where embeddings and pictures' moments are, and how they were made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from .json_text import read_json

ContentKey = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
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

    negative: ContentKey | None
    prompt: ContentKey
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


@dataclass(frozen=True)
class PictureEncoding:
    """Keys of the moments of a request's picture in shared memory; who finds one gone has the picture encoded again.

    Attributes:
        picture: Of the picture's; None where nothing of it is wanted.
        masked: Of the picture's without what the mask covers, for UNets that inpaint; else None.
        ms: What encoding took.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    picture: ContentKey | None = None
    masked: ContentKey | None = None
    ms: float = 0.0

    def to_json(self) -> str:
        """As it travels between models."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PictureEncoding:
        """What `to_json` wrote.

        Raises:
            InvalidRequestError: If the text is anything else (a client called an inner model by itself).
        """
        return read_json(cls, text, "LATENT_KEYS is not what `vae_encoder` writes")


NO_PICTURE = PictureEncoding()
"""Of text to image."""
