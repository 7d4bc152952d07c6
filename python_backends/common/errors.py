"""Why a request ends without a picture: one type per cause, with the message that its client reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class RequestError(Exception):
    """A request that ends without a picture.

    Attributes:
        code: Name of the code of `pb_utils.TritonError` that the client is sent.
        outcome: What such an end is counted as.
        reason: What it is counted as where the request is refused, before anything is computed for it.
    """

    code, outcome, reason = "INTERNAL", "failed", "failed"


class InvalidRequestError(RequestError):
    """The client's mistake; the message names the field, what was given and what is allowed."""

    code, outcome, reason = "INVALID_ARG", "invalid", "invalid"


class UnknownLoraError(InvalidRequestError):
    """A name that is not in the LoRA catalogue; the message has the nearest names."""

    reason = "lora"


class UnusableFileError(InvalidRequestError):
    """A LoRA file that no server can use, whatever its checkpoint: malformed, or of values that are none."""

    reason = "lora"


class RequestCancelledError(RequestError):
    """The model `cancel` was asked to end it."""

    code, outcome, reason = "CANCELLED", "cancelled", "cancelled"


class RequestTimeoutError(RequestError):
    """Its TIMEOUT_MS passed."""

    code, outcome, reason = "UNAVAILABLE", "late", "late"


class OverloadedError(RequestError):
    """The request would not be done in time; the message has forecast, limit and when to try again."""

    code, outcome, reason = "UNAVAILABLE", "shed", "late"


class LinesFullError(OverloadedError):
    """The request has no limit, but as many wait as may."""

    reason = "full"


class DrainingError(RequestError):
    """The server is about to stop and takes no new requests."""

    code, outcome, reason = "UNAVAILABLE", "shed", "draining"


class ModelDownError(RequestError):
    """An inner model whose process is down, and is being loaded again; the message has its name."""

    code, reason = "UNAVAILABLE", "down"


class NotBegunError(ModelDownError):
    """Nothing was done for the request, and nothing can be before the model is loaded again."""

    outcome = "shed"


class ModelFailedError(RequestError):
    """An inner model that lives and answered with an error; the message has its name."""


class LoraUnavailableError(RequestError):
    """A LoRA of the catalogue that its store does not give, or not in time; the message has its name."""

    code, reason = "UNAVAILABLE", "lora"


class ImageUnavailableError(RequestError):
    """A request's picture for a ControlNet that the server does not hold, or has no room for."""

    code, reason = "UNAVAILABLE", "controlnet_image"


class EmbeddingsUnavailableError(RequestError):
    """Embeddings of a request's prompts that the server has no room for, or that went before they were used."""

    code = "UNAVAILABLE"


class ControlNetUnavailableError(RequestError):
    """A ControlNet that gives no answer, or not in time; the message has its name."""

    code = "UNAVAILABLE"


class ControlNetDownError(ControlNetUnavailableError):
    """A ControlNet whose process is down, but not for long: the step can be taken when it is loaded again."""


class EntryLostError(RequestError):
    """What was known of an edited picture could not be read; the step can be taken without."""

    code = "UNAVAILABLE"


class NoRoomError(RequestError):
    """The machine's shared memory, in which tensors go from model to model, or its disk is full."""

    code = "UNAVAILABLE"


class UnexpectedError(RequestError):
    """Whatever no other type stands for; the server's log has the traceback."""


def to_report(error: RequestError) -> dict[str, str]:
    """An error as JSON values, to travel from one model to the next."""
    return {"type": type(error).__name__, "message": str(error)}


def from_report(report: dict[str, str]) -> RequestError:
    """The error that `to_report` described."""
    types = {error_type.__name__: error_type for error_type in all_types()}
    return types.get(report["type"], UnexpectedError)(report["message"])


def row_reports(failures: Mapping[int, RequestError], rows: int) -> list[str]:
    """The failures of some rows of a call as texts, one per row."""
    return [json.dumps(to_report(failures[row]) if row in failures else None) for row in range(rows)]


def row_failures(reports: Iterable[str]) -> dict[int, RequestError]:
    """What `row_reports` wrote."""
    parsed = (json.loads(report) for report in reports)
    return {row: from_report(report) for row, report in enumerate(parsed) if report is not None}


def all_types(of: type[RequestError] = RequestError) -> list[type[RequestError]]:
    """Every error type, subtypes of subtypes too."""
    return [of, *(each for subtype in of.__subclasses__() for each in all_types(subtype))]
