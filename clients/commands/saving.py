"""Pictures as the file that a command was asked for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..client.request import GenerationRequest
from ..client.result import GenerationResult
from .contact_sheet import contact_sheet

_FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}
"""What a server makes of a picture, by suffix."""


def of_suffix(out: Path, requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
    """The requests; one that is alone asks for its picture as such a file, if servers make those."""
    if len(requests) > 1:
        return list(requests)
    return [replace(request, output_format=_FORMATS.get(out.suffix.lower())) for request in requests]


def save(out: Path, results: Sequence[GenerationResult]) -> None:
    """Writes one picture, as the server sent it if that is a file; several go on one captioned sheet."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if len(results) > 1:
        contact_sheet([(each.image, f"{each.request.prompt} ({each.info.seed})") for each in results]).save(out)
    elif results[0].encoded is None:
        results[0].image.save(out)
    else:
        out.write_bytes(results[0].encoded)
