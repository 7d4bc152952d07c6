"""What comes back: the picture, the report on how it was made, progress (the wire contract's output side)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict

from .errors import ServerFailure


class _Report(BaseModel):
    """Part of INFO; keys that this client does not know are kept in `model_extra`."""

    model_config = ConfigDict(extra="allow", frozen=True)


class LoraReport(_Report):
    """How one LoRA was applied: at which step, from where (gpu, host, disk, remote), times in milliseconds."""

    name: str
    scale: float | None = None
    patched_at_step: int | None = None
    source: str | None = None
    load_ms: float | None = None
    patch_ms: float | None = None
    modules: int | None = None


class ControlNetReport(_Report):
    """How often one ControlNet was called."""

    name: str
    calls: int | None = None


class GenerationInfo(_Report):
    """How a picture was made; `timings_ms` are milliseconds per stage."""

    seed: int
    steps: int | None = None
    scheduler: str | None = None
    loras: tuple[LoraReport, ...] = ()
    controlnets: tuple[ControlNetReport, ...] = ()
    shards: tuple[str, ...] = ()
    timings_ms: dict[str, float] = {}


class Progress(_Report):
    """`step` of `of` denoising steps are done."""

    step: int
    of: int


@dataclass(frozen=True, eq=False)
class GenerationResult:
    """A finished picture.

    Attributes:
        pixels: uint8 [H, W, 3].
        info: how it was made.
        request_id: the id the request was sent with.
        seconds: from sending to receiving, as this client saw it.
    """

    pixels: npt.NDArray[np.uint8] = field(repr=False)
    info: GenerationInfo
    request_id: str
    seconds: float

    @cached_property
    def image(self) -> Image.Image:
        """The picture as a PIL image, made at first use."""
        return Image.fromarray(self.pixels)


Outputs = Mapping[str, npt.NDArray[Any] | None]


def parse_result(outputs: Outputs, request_id: str, seconds: float) -> GenerationResult:
    """A finished picture from the outputs IMAGE [1, H, W, 3] and INFO [1, 1].

    Raises:
        ServerFailure: an output is missing.
    """
    image, info = outputs.get("IMAGE"), outputs.get("INFO")
    if image is None or info is None:
        raise ServerFailure(f"the server's answer lacks {'IMAGE' if image is None else 'INFO'}")
    return GenerationResult(image[0], GenerationInfo.model_validate_json(_text(info)), request_id, seconds)


def parse_progress(outputs: Outputs) -> Progress | None:
    """Progress from a response without IMAGE; None if it says nothing of a step."""
    info = outputs.get("INFO")
    return None if info is None else Progress.model_validate_json(_text(info))


def _text(tensor: npt.NDArray[Any]) -> bytes:
    value = tensor.reshape(-1)[0]
    return value if isinstance(value, bytes) else str(value).encode()
