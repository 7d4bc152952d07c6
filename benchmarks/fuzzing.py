"""Sends what `fuzz_requests` makes, and looks at what comes of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import grpc
import psutil
from tritonclient.grpc.service_pb2 import ModelStreamInferResponse

from fuzz_cases import GrpcCase, HttpCase
from fuzz_requests import Fuzzer
from swiftdiffusion.python_backends.common.processes import is_alive

ANSWER_S = 60.0
SERVICE = "/inference.GRPCInferenceService/"
UNANSWERED = "unanswered"

DOCUMENTED = {
    "HTTP": {"200", "400", "404", "405", "413", "415", "501", "503", "closed", "half-open"},
    "gRPC": {
        "OK",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "UNAVAILABLE",
        "UNIMPLEMENTED",
        "CANCELLED",
        "RESOURCE_EXHAUSTED",
        "failed in the stream",
    },
}
"""What may come of a bad request; closing a connection only where it brought no HTTP, cancelling only by the client."""

TRITONS_OWN = re.compile(
    "Unable to parse |failed to parse the request JSON|failed to get request params|parameter key .* was not found"
)
"""How sentences begin with which Triton itself calls a client's mistake an internal error (HTTP 500, gRPC INTERNAL)."""


@dataclass(frozen=True)
class Outcome:
    """What came of one case; the sentence is the server's."""

    case: HttpCase | GrpcCase
    status: str
    sentence: str = ""
    seconds: float = 0.0

    @property
    def protocol(self) -> str:
        """Which."""
        return "HTTP" if isinstance(self.case, HttpCase) else "gRPC"

    @property
    def is_documented(self) -> bool:
        """Whether a client may see it."""
        if self.status == "closed" and isinstance(self.case, HttpCase) and self.case.is_http:
            return False
        if self.status in ("500", "INTERNAL"):
            return TRITONS_OWN.match(self.sentence) is not None
        return self.status in DOCUMENTED[self.protocol]


@dataclass
class Tally:
    """How often what came, and what should not have.

    Attributes:
        counts: by protocol and status.
        server_errors: sentences of 5xx and their like, without what is quoted in them.
        slowest_s: of all.
        undocumented: what no client may see.
    """

    counts: Counter[str] = field(default_factory=Counter)
    server_errors: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    undocumented: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.counts[f"{outcome.protocol} {outcome.status}"] += 1
        if outcome.status in ("500", "501", "503", "INTERNAL", "UNAVAILABLE"):
            self.server_errors[f"{outcome.status}: {_shortened(outcome.sentence)}"] += 1
        self.slowest_s = max(self.slowest_s, outcome.seconds)
        if not outcome.is_documented:
            self.undocumented.append(outcome)


def fuzz(http_url: str, grpc_url: str, fuzzer: Fuzzer, requests: int, at_once: int = 8) -> Iterator[Outcome]:
    """Sends so many cases, some at the same time."""
    address = urlsplit(http_url)
    host = (address.hostname or "", address.port or 0)
    with grpc.insecure_channel(urlsplit(grpc_url).netloc) as channel, ThreadPoolExecutor(at_once) as threads:

        def send(case: HttpCase | GrpcCase) -> Outcome:
            start = time.monotonic()
            status, sentence = _send_http(host, case) if isinstance(case, HttpCase) else _send_grpc(channel, case)
            return Outcome(case, status, sentence, time.monotonic() - start)

        yield from threads.map(send, [fuzzer.case() for _ in range(requests)])


def processes(pid: int) -> set[int]:
    """Ids of a server's process and those of its models."""
    return {pid, *(child.pid for child in psutil.Process(pid).children() if is_alive(child.pid))}


def _send_http(address: tuple[str, int], case: HttpCase) -> tuple[str, str]:
    try:
        with socket.create_connection(address, timeout=ANSWER_S) as connection:
            with contextlib.suppress(OSError):  # refused before all of it was sent
                connection.sendall(case.payload)
                if not case.is_http and not case.is_half_open:
                    connection.shutdown(socket.SHUT_WR)
            if case.is_half_open:
                return "half-open", ""
            response = http.client.HTTPResponse(connection, method=case.payload.split(b" ")[0].decode("latin-1"))
            response.begin()
            body = response.read()
    except TimeoutError:
        return UNANSWERED, ""
    except (ConnectionError, http.client.HTTPException):
        return "closed", ""
    return str(response.status), _sentence(body)


def _send_grpc(channel: grpc.Channel, case: GrpcCase) -> tuple[str, str]:
    streams = case.method == "ModelStreamInfer"
    kind: Callable[..., Callable[..., grpc.Call]] = channel.stream_stream if streams else channel.unary_unary
    call = kind(SERVICE + case.method, request_serializer=bytes, response_deserializer=bytes)
    try:
        if streams:
            responses = call(iter([case.message]), timeout=ANSWER_S, metadata=case.metadata)
            return _read_stream(responses, case.cancel_after_s)
        answer = call.future(case.message, timeout=ANSWER_S, metadata=case.metadata)
        if case.cancel_after_s is not None:
            time.sleep(case.cancel_after_s)
            answer.cancel()
        answer.result()
    except grpc.FutureCancelledError:
        return "CANCELLED", ""
    except grpc.RpcError as error:
        status = error.code()
        return (UNANSWERED if status is grpc.StatusCode.DEADLINE_EXCEEDED else status.name), error.details() or ""
    return "OK", ""


def _read_stream(responses: grpc.Call, cancel_after_s: float | None) -> tuple[str, str]:
    if cancel_after_s is not None:
        time.sleep(cancel_after_s)
        responses.cancel()
    for response in responses:
        failure = ModelStreamInferResponse.FromString(response).error_message
        if failure:
            return "failed in the stream", failure
    return "OK", ""


def _sentence(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return ""


def _shortened(sentence: str) -> str:
    """What sentences of one kind have in common."""
    return re.sub(r"""'[^']*'|"[^"]*"|\d+""", "…", sentence)[:120]
