"""Responses to the requests of one call: what a model raises becomes a sentence for the request whose it is."""

from __future__ import annotations

import errno
import traceback
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from ..common.errors import NoRoomError, RequestError, UnexpectedError
from ..common.filesystem import as_text
from .dead_models import FULL_MEMORY, is_full

if TYPE_CHECKING:
    from collections.abc import Callable


def answer_each(
    requests: list[Any],
    respond: Callable[[Any], Any],
    what: str,
    failed: Callable[[Any, RequestError], None] | None = None,
) -> list[Any]:
    """A response for each request by itself.

    Args:
        requests: Of one `execute`.
        respond: Gives the response to one, or raises.
        what: Is done to them, for the message.
        failed: Told of each that ends with an error.
    """
    answers = (answer_all([request], lambda one: [respond(one[0])], what, failed) for request in requests)
    return [answer for each in answers for answer in each]


def answer_all(
    requests: list[Any],
    respond: Callable[[list[Any]], list[Any]],
    what: str,
    failed: Callable[[Any, RequestError], None] | None = None,
) -> list[Any]:
    """Responses to all requests at once; where that fails, to each by itself, since it may be the fault of one.

    Args:
        requests: Of one `execute`.
        respond: Gives their responses, or raises.
        what: Is done to them, for the message.
        failed: Told of each that ends with an error.
    """
    try:
        return respond(requests)
    except Exception as error:  # noqa: BLE001  a client must not get a traceback
        if len(requests) == 1:
            reason = as_request_error(error, what)
            if failed is not None:
                failed(requests[0], reason)
            return [error_response(reason)]
    return [answer for request in requests for answer in answer_all([request], respond, what, failed)]


def as_request_error(error: Exception, what: str) -> RequestError:
    """An error that a client can read; one that nobody foresaw goes to the log, and its client learns no more of it."""
    if isinstance(error, RequestError):
        return error
    pb_utils.Logger.log_error(as_text("".join(traceback.format_exception(error))))
    if is_full(str(error)):
        return NoRoomError(FULL_MEMORY)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoomError(f"{what} failed: the server's disk is full; try again later")
    return UnexpectedError(f"{what} failed with {type(error).__name__}: the server's log says more")


def error_response(error: RequestError) -> Any:
    """A response that carries only an error."""
    code = getattr(pb_utils.TritonError, error.code, pb_utils.TritonError.INTERNAL)  # older servers lack some codes
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(as_text(str(error)), code))
