"""What OpenAI's images API answers: one object, or server-sent events, with every field that its SDK reads."""

import base64
import json
import time
from collections.abc import Sequence
from typing import Any

from ..client.result import GenerationResult, Progress
from .errors import ApiError

GENERATION, EDIT = "image_generation", "image_edit"
"""Which route's events."""

USAGE: dict[str, Any] = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""Nothing here is counted, or billed, in tokens: the SDK wants the numbers all the same."""


def pictures_answer(
    results: Sequence[GenerationResult], urls: Sequence[str] | None, masked_by: str | None
) -> dict[str, Any]:
    """The answer with pictures; `urls` in place of them, where they are asked for so."""
    info = results[0].info
    data = [
        {
            **({"b64_json": _text(result.encoded)} if urls is None else {"url": urls[index]}),
            "seed": result.info.seed,
            "info": _info(result),
        }
        for index, result in enumerate(results)
    ]
    return {
        "created": int(time.time()),
        "data": data,
        "background": "opaque",
        "output_format": info.output_format,
        "size": f"{info.width}x{info.height}",
        "usage": USAGE,
        **_mask(masked_by),
    }


def completed_event(of: str, result: GenerationResult, masked_by: str | None) -> bytes:
    """The last event of a stream."""
    info = result.info
    return event(
        f"{of}.completed",
        {
            **_about(info.output_format, f"{info.width}x{info.height}"),
            "b64_json": _text(result.encoded),
            "usage": USAGE,
            "seed": info.seed,
            "info": _info(result),
            **_mask(masked_by),
        },
    )


def partial_event(of: str, preview: bytes, index: int, file_format: str, size: str) -> bytes:
    """A picture on its way."""
    return event(
        f"{of}.partial_image", {**_about(file_format, size), "b64_json": _text(preview), "partial_image_index": index}
    )


def progress_event(of: str, progress: Progress, file_format: str, shows: bool) -> bytes:
    """How far it is: this project's own event, with a preview where there is one that is wanted."""
    preview = {"b64_json": _text(progress.preview), "output_format": file_format} if shows and progress.preview else {}
    return event(f"{of}.progress", {"step": progress.step, "of": progress.of, **preview})


def error_event(error: ApiError) -> bytes:
    """Why a stream ends without a picture; the SDK raises it."""
    return event("error", error.body("/v1/"), typed=False)


def event(name: str, data: dict[str, Any], typed: bool = True) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data} if typed else data)}\n\n".encode()


def _about(file_format: str | None, size: str) -> dict[str, Any]:
    return {
        "created_at": int(time.time()),
        "size": size,
        "quality": "auto",
        "background": "opaque",
        "output_format": file_format,
    }


def _mask(masked_by: str | None) -> dict[str, str]:
    """What of a mask was painted anew."""
    return {} if masked_by is None else {"mask": masked_by}


def _info(result: GenerationResult) -> dict[str, Any]:
    """INFO as the server wrote it."""
    return result.info.model_dump(mode="json", exclude_unset=True)


def _text(file: bytes | None) -> str:
    return base64.b64encode(file or b"").decode("ascii")
