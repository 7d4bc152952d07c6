"""A real HTTP server on a loopback port that serves files as badly as a test wants."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """How one path is answered.

    Attributes:
        content: Its bytes.
        failures: Statuses of the first answers, one each; afterwards it is served.
        announced: Content-Length, if not the true one; -1 for none.
        cut_after: Break the connection after so many bytes, in the first `cuts` answers.
        cuts: How many answers are cut off.
        stall_after: Send nothing more after so many bytes, until the test ends.
        drip_s: Pause between chunks of 1 KiB.
        delay_s: Pause before the answer.
        gate: Answer only once it is set.
        redirect: Path to send the client to.
        headers: More headers.
        reason: Phrase beside the status of a failure, if not the usual one.
    """

    content: bytes = b""
    failures: list[int] = field(default_factory=list)
    announced: int | None = None
    cut_after: int | None = None
    cuts: int = 1_000_000
    stall_after: int | None = None
    drip_s: float = 0.0
    delay_s: float = 0.0
    gate: threading.Event | None = None
    redirect: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    reason: str | None = None


class FileServer:
    """Paths with behaviours, and a count of the requests for each."""

    def __init__(self) -> None:
        self.paths: dict[str, Behaviour] = {}
        self.gets: dict[str, int] = {}
        self.folder = f"/{secrets.token_hex(4)}"  # a later server may get this one's port, and caches know files by URL
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def add(self, path: str, content: bytes = b"", **how: object) -> str:
        """Serves a path; returns its URL."""
        self.paths[path] = Behaviour(content, **how)  # type: ignore[arg-type]
        return self.url(path)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{self.folder}{path}"

    def count(self, path: str) -> None:
        with self._lock:
            self.gets[path] = self.gets.get(path, 0) + 1

    def close(self) -> None:
        self.stop.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def file_server() -> Iterator[FileServer]:
    server = FileServer()
    try:
        yield server
    finally:
        server.close()


def _handler(server: FileServer) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, server)

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    return Handler


def _answer(request: BaseHTTPRequestHandler, server: FileServer) -> None:
    path = request.path.removeprefix(server.folder)
    server.count(path)
    how = server.paths.get(path)
    if how is None:
        request.send_error(404)
        return
    server.stop.wait(how.delay_s)
    while how.gate is not None and not how.gate.wait(0.05) and not server.stop.is_set():
        pass
    if how.failures:
        request.send_error(how.failures.pop(0), how.reason)
        return
    if how.redirect is not None:
        request.send_response(302)
        request.send_header("Location", how.redirect)
        request.end_headers()
        return
    request.send_response(200)
    announced = len(how.content) if how.announced is None else how.announced
    if announced >= 0:
        request.send_header("Content-Length", str(announced))
    for name, value in how.headers.items():
        request.send_header(name, value)
    request.end_headers()
    try:
        _send(request, how, server)
    except OSError:  # the client has had enough
        return


def _send(request: BaseHTTPRequestHandler, how: Behaviour, server: FileServer) -> None:
    content = how.content
    if how.cut_after is not None and how.cuts > 0:
        how.cuts -= 1
        content = content[: how.cut_after]
    elif how.stall_after is not None:
        content = content[: how.stall_after]
    size = 1024 if how.drip_s else max(len(content), 1)
    for start in range(0, len(content), size):
        request.wfile.write(content[start : start + size])
        request.wfile.flush()
        if how.drip_s and server.stop.wait(how.drip_s):
            return
    if how.stall_after is not None:
        server.stop.wait(60)


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
