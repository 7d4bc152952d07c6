"""What a caller is told when there is no picture: one kind of error, in the shape of the API that was called."""

import math
import re
import traceback
from typing import Any

from fastapi.responses import JSONResponse

from ..client.errors import (
    InvalidRequest,
    ModelNotFound,
    RequestCancelled,
    RequestTimeout,
    ServerRestarting,
    ServerUnavailable,
    ServerUnreachable,
    SwiftDiffusionError,
)

WEBUI = "/sdapi/"
"""What paths of A1111's API begin with."""

RETRY_SECONDS = 5
"""Where the server does not say when to come back."""

_NEVER = "; it would never be"
_RETRY_AFTER = re.compile(r"retry_after_ms (\d+)")
_OVERLOADED = re.compile(r"the request would be done in \d+ ms|queue|retry_after_ms|; try again later")
_IN_ENSEMBLE = re.compile(r"^in ensemble '[^']*', ")
_QUOTED = re.compile(r'"[^"]*"')
"""What the caller itself has written."""
_FIELD = re.compile(r"([A-Z][A-Z_]+)\b")

FIELDS = {
    "PROMPT": "prompt",
    "NEGATIVE_PROMPT": "negative_prompt",
    "PROMPT_SYNTAX": "prompt_syntax",
    "SEED": "seed",
    "STEPS": "num_inference_steps",
    "GUIDANCE_SCALE": "guidance_scale",
    "GUIDANCE_RESCALE": "guidance_rescale",
    "HEIGHT": "size",
    "WIDTH": "size",
    "SCHEDULER": "scheduler",
    "CLIP_SKIP": "clip_skip",
    "LORAS": "lora",
    "LORA_BOUND": "lora_bound",
    "CONTROLNETS": "controlnet",
    "CONTROL_IMAGES": "controlnet",
    "TIMEOUT_MS": "timeout_ms",
    "PRIORITY": "priority",
    "OUTPUT_FORMAT": "output_format",
    "OUTPUT_QUALITY": "output_compression",
    "OUTPUT_METADATA": "output_metadata",
    "PREVIEWS": "preview_every",
    "INIT_IMAGE": "image",
    "ENCODED_INIT_IMAGE": "image",
    "MASK_IMAGE": "mask",
    "STRENGTH": "strength",
    "COMPOSITE": "composite",
    "MASK_AWARE": "mask_aware",
}
"""Input of the wire contract, which the server's sentences name → field of the OpenAI route."""


class ApiError(Exception):
    """Why a request ends without what it asked for.

    Attributes:
        status: of HTTP.
        message: a sentence for the caller.
        kind: OpenAI's `type`.
        param: the field that it is about; None: none.
        code: OpenAI's `code`; None: none.
        retry_after: seconds; None: it says nothing of that.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.retry_after = param, code, retry_after

    def body(self, path: str) -> dict[str, Any]:
        """In the shape that callers of a path expect."""
        if path.startswith(WEBUI):
            return {"error": self.kind, "detail": self.message, "body": "", "errors": self.message}
        later = {} if self.retry_after is None else {"retry_after": self.retry_after}
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code, **later}}

    def response(self, path: str) -> JSONResponse:
        """The whole answer."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return JSONResponse(self.body(path), self.status, headers)


def api_error(error: BaseException) -> ApiError:
    """What a failure of a run is to the caller: the server's own sentence, with a status of HTTP."""
    message = _IN_ENSEMBLE.sub("", str(error))
    match error:
        case ApiError():
            return error
        case InvalidRequest() | ValueError():
            field = _FIELD.match(message)
            return ApiError(400, message, param=FIELDS.get(field[1]) if field else None)
        case ModelNotFound():
            return ApiError(404, message, param="model", code="model_not_found")
        case RequestCancelled():
            return ApiError(499, message, "cancelled", code="cancelled")
        case RequestTimeout():
            return ApiError(504, message, "timeout", param="timeout_ms", code="timeout")
        case ServerUnreachable():  # whose sentence has the server's address
            return unavailable("no server answers; try again later")
        case ServerRestarting():
            return unavailable(message)
        case ServerUnavailable():
            return _full_or_away(message)
        case SwiftDiffusionError():
            return ApiError(500, message, "server_error", code="server_error")
    return ApiError(500, "the gateway failed; its log says more", "server_error", code="gateway_error")


def unavailable(message: str, seconds: int = RETRY_SECONDS) -> ApiError:
    """What cannot be had now, and may be in so many seconds."""
    return ApiError(503, message, "server_error", code="server_unavailable", retry_after=seconds)


def frames_of(error: BaseException) -> str:
    """Where an error comes from that nobody foresaw, for the log: its own text may hold what a caller sent."""
    return "".join([*traceback.format_tb(error.__traceback__), type(error).__name__])


def _full_or_away(message: str) -> ApiError:
    """Too much to do is 429, what cannot be had 503; what no waiting helps against is the caller's to change."""
    if _NEVER in message:
        return ApiError(400, message, param="timeout_ms" if "TIMEOUT_MS" in message else None, code="never_in_time")
    said = _RETRY_AFTER.search(message)
    seconds = max(1, math.ceil(int(said[1]) / 1000)) if said else RETRY_SECONDS
    if _OVERLOADED.search(_QUOTED.sub("", message)):
        return ApiError(429, message, "rate_limit_error", code="overloaded", retry_after=seconds)
    return unavailable(message, seconds)
