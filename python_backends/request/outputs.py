"""How a request wants its picture: raw pixels or a file, with previews or without. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import ConfigDict, Field

from ..common.errors import InvalidRequestError
from ..common.sentences import shown

if TYPE_CHECKING:
    from .fields import Fields
    from .rules import RequestRules

FileFormat = Literal["png", "webp", "jpeg"]
FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
RAW, BASE64 = "raw", ";base64"

QUALITY = 90
"""Of WebP and JPEG, where the request names none."""

LOSSLESS = 100
"""The quality at which WebP keeps every pixel; JPEG never does."""

PreviewDecoder = Literal["linear", "vae"]
PREVIEW_DECODERS: tuple[PreviewDecoder, ...] = get_args(PreviewDecoder)
PREVIEW_SIZE, MIN_PREVIEW_SIZE, MAX_PREVIEW_SIZE = 256, 16, 1024
"""Longer side of a preview, in pixels; never more than the picture's."""


@dataclass(frozen=True)
class FileOutput:
    """A picture as a file.

    Attributes:
        format: Of the file.
        quality: Of WebP and JPEG, 1 to 100; `LOSSLESS` for PNG.
        base64: Whether the file travels as base64 text, for those who read JSON.
        metadata: Whether a PNG carries what it was made of.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    format: FileFormat
    quality: Annotated[int, Field(ge=1, le=100)]
    base64: bool = False
    metadata: bool = False


@dataclass(frozen=True)
class Previews:
    """Pictures of a run that goes on.

    Attributes:
        every: So many steps.
        size: Longer side in pixels.
        decoder: `linear`: a linear map of the latents, as small as they are; `vae`: the autoencoder.
        file: Their format: that of the picture, JPEG where that is raw.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    every: Annotated[int, Field(ge=1)]
    size: Annotated[int, Field(ge=1, le=MAX_PREVIEW_SIZE)]
    decoder: PreviewDecoder
    file: FileOutput

    def shows(self, step: int) -> bool:
        """Whether there is one after so many steps."""
        return step > 0 and step % self.every == 0


def parse_output(fields: Fields) -> FileOutput | None:
    """OUTPUT_FORMAT, OUTPUT_QUALITY, OUTPUT_METADATA; None for raw pixels.

    Raises:
        InvalidRequestError: If one is out of its limits, or has no meaning beside the others.
    """
    given = fields.text("OUTPUT_FORMAT", 64)
    given = RAW if given is None else given
    quality = fields.integer("OUTPUT_QUALITY", 1, 100)
    metadata = fields.boolean("OUTPUT_METADATA")
    name, base64, rest = given.partition(BASE64)
    known = next((each for each in FORMATS if each == name), None)
    if rest or (known is None and given != RAW):
        allowed = ", ".join((RAW, *FORMATS, *(f"{each}{BASE64}" for each in FORMATS)))
        raise InvalidRequestError(f"OUTPUT_FORMAT is {shown(given)}; allowed: {allowed}")
    if quality is not None and known not in ("webp", "jpeg"):
        raise InvalidRequestError(f"OUTPUT_QUALITY is {quality}; allowed: only where OUTPUT_FORMAT is webp or jpeg")
    if metadata and known != "png":
        raise InvalidRequestError("OUTPUT_METADATA is true; allowed: only where OUTPUT_FORMAT is png")
    if known is None:
        return None
    if known == "png":
        return FileOutput(known, LOSSLESS, bool(base64), metadata is not False)
    return FileOutput(known, QUALITY if quality is None else quality, bool(base64))


def parse_previews(fields: Fields, rules: RequestRules, output: FileOutput | None) -> Previews | None:
    """PREVIEWS, PREVIEW_SIZE, PREVIEW_DECODER; None for none.

    Args:
        fields: Of the request.
        rules: Its limits.
        output: Of the picture.

    Raises:
        InvalidRequestError: If one is out of its limits, or has no meaning without PREVIEWS.
    """
    every = fields.integer("PREVIEWS", 0, rules.max_steps)
    size = fields.integer("PREVIEW_SIZE", MIN_PREVIEW_SIZE, MAX_PREVIEW_SIZE)
    given = fields.text("PREVIEW_DECODER", 64)
    decoder = next((each for each in PREVIEW_DECODERS if each == given), None)
    if given is not None and decoder is None:
        raise InvalidRequestError(f"PREVIEW_DECODER is {shown(given)}; allowed: {', '.join(PREVIEW_DECODERS)}")
    if not every:
        for name, value in (("PREVIEW_SIZE", size), ("PREVIEW_DECODER", given)):
            if value is not None:
                raise InvalidRequestError(f"{name} is {shown(value)}; allowed: only where PREVIEWS is at least 1")
        return None
    file = FileOutput("jpeg", QUALITY) if output is None else output
    return Previews(
        every,
        PREVIEW_SIZE if size is None else size,
        decoder or "linear",
        FileOutput(file.format, file.quality, file.base64),
    )
