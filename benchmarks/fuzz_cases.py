"""What is sent to a server under fuzzing."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class HttpCase:
    """Bytes for one connection.

    Attributes:
        kind: what is wrong with them.
        payload: sent as they are.
        is_http: they are one whole request of HTTP/1.1, which has to be answered; else closing is an answer too.
        is_half_open: no end of them comes, and nobody answers.
    """

    kind: str
    payload: bytes = field(repr=False)
    is_http: bool = True
    is_half_open: bool = False


@dataclass(frozen=True)
class GrpcCase:
    """One call.

    Attributes:
        kind: what is wrong with it.
        method: of `inference.GRPCInferenceService`.
        message: serialised.
        metadata: of the call.
        cancel_after_s: the client goes then; None waits.
    """

    kind: str
    method: str
    message: bytes = field(repr=False)
    metadata: tuple[tuple[str, str], ...] = ()
    cancel_after_s: float | None = None
