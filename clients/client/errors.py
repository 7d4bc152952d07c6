"""What a request can end in, one exception per cause; messages are the server's own sentences."""

import re

_OF_THE_REQUEST = re.compile(r'; (?:allowed|required|wanted)\b|REQUEST_ID ".*" was cancelled', re.DOTALL)
"""What ends a request whatever else its sentence quotes."""

_RESTARTING = re.compile(
    r"; retry (?:in a few seconds|elsewhere)$|\bStub process '[^']*' is not healthy|\bFailed to obtain the health mutex"
    r"|^(?:in ensemble '[^']*', )?Request for unknown model: '[^']*' has no available versions|^Stream removed"
    r"|[Ss]erver is stopping, scheduler|has stopped accepting new inference requests"
)
"""The server's own sentences, and Triton's about a process that has died or a model that is being loaded."""

_LORA = re.compile(r'\bLORAS(?: names "|: )')
_CANCELLED = re.compile(r'REQUEST_ID ".*" was cancelled', re.DOTALL)
_RESTRICTED = "is restricted, expecting header"
_UNREACHABLE = ("failed to connect", "DNS resolution failed", "Socket closed", "Connection reset", "recvmsg:")


class SwiftDiffusionError(Exception):
    """Base of everything the clients raise about a server or a request."""


class InvalidRequest(SwiftDiffusionError):  # noqa: N818
    """The server refused the request: the message names the field, its value and what is allowed."""


class ModelNotFound(SwiftDiffusionError):  # noqa: N818
    """The server does not serve the model that was asked for."""


class ServerUnavailable(SwiftDiffusionError):  # noqa: N818
    """The server, or a part of it that the request needs, cannot take requests now."""


class ServerUnreachable(ServerUnavailable):
    """Nobody answers at the URL."""


class ServerRestarting(ServerUnavailable):
    """A part of the server that the request needs has died and is being loaded again, or the server starts or drains.

    The same request can be sent again in a few seconds: nobody has its picture.
    """


class AdminKeyWanted(SwiftDiffusionError):  # noqa: N818
    """The server is restricted, and what was asked for wants its key."""


class LoraUnavailable(ServerUnavailable):
    """A LoRA that the server has in its catalogue cannot be had now, such as from a store that is down.

    The message names it; requests without it are served.
    """


class RequestCancelled(SwiftDiffusionError):  # noqa: N818
    """The request was cancelled by its id."""


class RequestTimeout(SwiftDiffusionError):  # noqa: N818
    """The request took longer than its `timeout_ms` or than the call's timeout."""


class ServerFailure(SwiftDiffusionError):  # noqa: N818
    """The server failed while it worked on the request."""


class StreamingUnsupported(SwiftDiffusionError):  # noqa: N818
    """Progress was asked for over HTTP; it needs a gRPC URL."""


_BY_STATUS: dict[str, type[SwiftDiffusionError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "400": InvalidRequest,
    "413": InvalidRequest,
    "NOT_FOUND": ModelNotFound,
    "404": ModelNotFound,
    "UNAVAILABLE": ServerUnavailable,
    "503": ServerUnavailable,
    "CANCELLED": RequestCancelled,
    "499": RequestCancelled,
    "DEADLINE_EXCEEDED": RequestTimeout,
    "504": RequestTimeout,
}


_BY_SENTENCE: tuple[tuple[re.Pattern[str], str], ...] = (
    (_CANCELLED, "CANCELLED"),
    (re.compile("TIMEOUT_MS passed"), "DEADLINE_EXCEEDED"),
    (re.compile(r"the request would be done in \d+ ms"), "UNAVAILABLE"),
    (re.compile(r'\bLORAS(?:: | names "[^"]*", not loaded)'), "UNAVAILABLE"),
    (re.compile(r'\bLORAS names "[^"]*": its (?:store|place|file (?:hashes|changed|cannot))'), "UNAVAILABLE"),
    (re.compile(r'\bLORAS names "[^"]*": .* of the host cache\'s '), "UNAVAILABLE"),
    (re.compile(r"\b(?:is|are) down\b"), "UNAVAILABLE"),
    (re.compile("; try again later"), "UNAVAILABLE"),
    (re.compile("unknown model"), "NOT_FOUND"),
    (re.compile(r'; (?:allowed|required|wanted)\b|\bLORAS names "'), "INVALID_ARGUMENT"),
)
"""What the failure of a stream, whose messages come without a status, has for one: the first that its sentence fits."""


def error_from_status(status: str | None, message: str, url: str) -> SwiftDiffusionError:
    """The exception for a status of the server.

    Args:
        status: gRPC (`StatusCode.INVALID_ARGUMENT`) or HTTP (`400`) status; None if there is none, as in a stream: then
            the sentence tells the kind.
        message: the server's sentence.
        url: the server's URL.
    """
    if _RESTRICTED in message:
        sentence = "its state, statistics and model control are for who has its key"
        return AdminKeyWanted(f"the server at {url} is restricted: {sentence} (admin_key=, --admin-key-file)")
    if status is None:
        status = next((code for sentence, code in _BY_SENTENCE if sentence.search(message)), "")
    if _RESTARTING.search(message) and not _OF_THE_REQUEST.search(message):
        return ServerRestarting(message)
    code = status.removeprefix("StatusCode.")
    kind = _BY_STATUS.get(code, ServerFailure)
    if kind is ServerUnavailable and message.startswith(_UNREACHABLE):
        return unreachable(url, message)
    if kind in (ServerUnavailable, RequestCancelled) and "TIMEOUT_MS passed" in message:
        kind = RequestTimeout  # gRPC's own code for that is not among those a Triton model can return
    if kind is ServerUnavailable and _LORA.search(message):
        kind = LoraUnavailable
    if kind is InvalidRequest and _CANCELLED.search(message):
        kind = RequestCancelled  # Triton's HTTP API answers 400 to what its gRPC API calls CANCELLED
    return kind(message)


def unreachable(url: str, reason: object) -> ServerUnreachable:
    """Nobody answers at a URL."""
    return ServerUnreachable(f"no server answers at {url} ({reason})")
