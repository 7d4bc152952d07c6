"""What a denoiser tells `vae_decoder` of each response that it sends through it. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from pydantic import ConfigDict

from ..backend.request_ends import Ending
from ..request.completed import CompletedRequest
from ..request.json_text import read_json


@dataclass(frozen=True)
class Report:
    """An error, as `errors.to_report` says it."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    type: str
    message: str


@dataclass(frozen=True)
class Handover:
    """What is to be made of LATENTS, which travel beside it as INFO does.

    Attributes:
        final: Whether they become the picture; else a preview, if the request is here and wants some, or nothing.
        request: Whose they are, where anything is made of them.
        done_at: When they were final, in seconds of the monotonic clock.
        ending: What is told of the request at its end.
        error: Why its stream ends without a picture.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    final: bool = False
    request: CompletedRequest | None = None
    done_at: float | None = None
    ending: Ending | None = None
    error: Report | None = None

    def to_json(self) -> str:
        """As it travels."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Handover:
        """What `to_json` wrote.

        Raises:
            InvalidRequestError: If the text is anything else (a client called an inner model by itself).
        """
        return read_json(cls, text, "HANDOVER is not what a denoiser writes")
