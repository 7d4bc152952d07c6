"""What every request passes: its id, its key, the limits of its body, a line in the log, metrics."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import ExitStack
from typing import Any

from .errors import ApiError, api_error, frames_of
from .keys import Caller, Keys
from .metrics import Metrics
from .origins import Origins

logger = logging.getLogger("swiftdiffusion.gateway")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

GUARDED = ("/v1/", "/sdapi/", "/controlnet/")
OPEN = "/v1/images/files/"
"""Pictures by signed URL, which needs no key."""

DRAWING = {"/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"}
"""Routes of which a caller may have so many requests at once."""

UNREAD_S = 120.0
"""A caller who reads nothing for so long has gone."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_ADDRESS = re.compile(r"[A-Za-z0-9_.:%-]{1,64}")
NOWHERE = b"base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data: blob:; " + NOWHERE),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Door:
    """The outermost of the application, plain ASGI: what it holds for a request lasts as long as its answer."""

    def __init__(
        self,
        app: App,
        keys: Keys,
        origins: Origins,
        metrics: Metrics,
        *,
        max_body_bytes: int,
        body_seconds: float,
        routes: Iterable[str] = (),
    ) -> None:
        """Before an application.

        Args:
            app: That.
            keys: Who may come in.
            origins: Whose pages may send requests.
            metrics: Of the gateway.
            max_body_bytes: Of one request.
            body_seconds: In which it has to be here.
            routes: Paths that may be told of requests that are refused here.
        """
        self._app, self._keys, self._origins, self._metrics = app, keys, origins, metrics
        self._routes = frozenset(routes)
        self._max_body_bytes, self._body_seconds = max_body_bytes, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request in, or says why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        visit = _Visit(scope, _request_id(headers.get(b"x-request-id")), send, self._routes)
        try:
            with ExitStack() as held:
                path, most = visit.path, 0  # only routes behind a key read a body
                if path.startswith(GUARDED) and not path.startswith(OPEN):
                    self._origins.check(headers)
                    most = self._max_body_bytes
                    visit.caller = self._keys.caller(headers.get(b"authorization"), visit.address)
                    if path in DRAWING:
                        held.enter_context(self._keys.busy(visit.caller))
                scope.setdefault("state", {}).update(request_id=visit.request_id, caller=visit.caller.name)
                await self._app(scope, _replayed(await self._body(headers, receive, most), receive), visit.send)
        except ApiError as error:
            self._metrics.refused.labels(error.code or str(error.status)).inc()
            await error.response(visit.path)(scope, receive, visit.send)
        except _Gone:
            visit.status = visit.status or 499
        except Exception as error:  # noqa: BLE001  whatever one request brings, its caller is told, and the log
            logger.error("request %s failed:\n%s", visit.request_id, frames_of(error))
            if not visit.status:
                await api_error(error).response(visit.path)(scope, receive, visit.send)
        finally:
            self._note(visit)

    async def _body(self, headers: dict[bytes, str], receive: Receive, most: int) -> bytes:
        """All of it, of at most so many bytes."""
        if int(headers.get(b"content-length", "0")) > most:  # a server has checked that it is a number
            raise _too_large(most)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise _too_large(most)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(
                408, f"the body was not here within {self._body_seconds:g} s", code="request_timeout"
            ) from None

    def _note(self, visit: "_Visit") -> None:
        """One line, in which there is nothing that a caller wrote but its id and a route that there is."""
        seconds = time.monotonic() - visit.began
        route = visit.route
        method = visit.scope["method"] if route != OTHER and visit.scope["method"] in METHODS else OTHER
        self._metrics.requests.labels(route, method, str(visit.status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        level = logging.DEBUG if route == STATIC else logging.INFO
        said = method, route, visit.status, seconds, visit.request_id, visit.caller.name
        logger.log(level, "%s %s %d %.3f s id=%s caller=%s", *said)


STATIC = "/page/"
"""Files of the page: no lines of theirs are in the log."""
OTHER = "other"
"""Paths that are no route, and methods that none has."""
METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is too large; allowed: {most} bytes", code="request_too_large")


class _Gone(Exception):  # noqa: N818
    """The caller went before its request was here, or does not read its answer."""


class _Visit:
    """One request."""

    def __init__(self, scope: Scope, request_id: str, send: Send, routes: frozenset[str]) -> None:
        self._routes = routes
        self.scope, self.request_id, self._send = scope, request_id, send
        address = str((scope.get("client") or ("",))[0])
        self.path = _own_path(scope)
        self.address = address if _ADDRESS.fullmatch(address) else "unknown"  # a proxy's header may say anything
        self.caller = Caller(self.address)
        self.began, self.status = time.monotonic(), 0

    async def send(self, message: Message) -> None:
        """Hands the answer on, with headers of its own."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [*HEADERS, (b"x-request-id", self.request_id.encode("ascii"))]
            message = {**message, "headers": [*message.get("headers", ()), *own]}
        try:
            async with asyncio.timeout(UNREAD_S):
                await self._send(message)
        except TimeoutError:
            raise _Gone from None

    @property
    def route(self) -> str:
        """Its pattern, once the application has found it; else the path, if that is one."""
        if self.path.startswith(STATIC):
            return STATIC
        route = getattr(self.scope.get("route"), "path", None)
        return str(route or (self.path if self.path in self._routes else OTHER))


def _own_path(scope: Scope) -> str:
    """As the application's routes are compared with it, should it be mounted in another."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if path.startswith(f"{root}/") else path


def _request_id(given: str | None) -> str:
    return given if given and _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body at once, then whatever comes: that the caller goes."""
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return rest.pop() if rest else await receive()

    return replay
