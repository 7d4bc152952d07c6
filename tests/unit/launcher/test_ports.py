"""Ports to listen on, and who listens there."""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from swiftdiffusion.python_backends.launcher.address import choose_address
from swiftdiffusion.python_backends.launcher.binary import ServerBinary
from swiftdiffusion.python_backends.launcher.errors import (
    PortBusyError,
    StartupTimeoutError,
)
from swiftdiffusion.python_backends.launcher.options import ServerOptions
from swiftdiffusion.python_backends.launcher.ports import check_ports, free_ports, listens
from swiftdiffusion.python_backends.launcher.triton_server import TritonServer


def test_busy_port_is_named_with_its_flag() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(PortBusyError, match=rf"port {port} is in use.*--grpc-port"):
            check_ports("127.0.0.1", {"--http-port": free_ports(1)[0], "--grpc-port": port})
        with pytest.raises(PortBusyError, match=str(port)):
            choose_address("127.0.0.1", port, None, None)


def test_one_port_for_two_apis_is_refused() -> None:
    (port,) = free_ports(1)
    with pytest.raises(PortBusyError, match="--metrics-port and --http-port are both"):
        check_ports("127.0.0.1", {"--http-port": port, "--metrics-port": port})


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(PortBusyError, match=r"192\.0\.2\.1"):
        check_ports("192.0.2.1", {"--http-port": 8000})


def test_free_ports_differ_and_are_free() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    check_ports("127.0.0.1", {f"--{port}": port for port in ports})


def test_who_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listens(os.getpid(), port)
        with subprocess.Popen(["sleep", "60"]) as other:
            assert not listens(other.pid, port)
            other.kill()
    assert not listens(os.getpid(), port)
    assert not listens(2**22 + 1, port)  # beyond Linux's largest process id


def test_another_server_at_the_port_does_not_make_this_one_ready(tmp_path: Path) -> None:
    (tmp_path / "repository" / "model" / "1").mkdir(parents=True)
    binary = tmp_path / "tritonserver"
    binary.write_text("#!/bin/sh\nexec sleep 60\n")  # it loads and loads
    binary.chmod(0o755)
    options = ServerOptions(extra_arguments=("--backend-directory=none",), startup_timeout_seconds=1)
    with pytest.raises(StartupTimeoutError):
        server = TritonServer(tmp_path / "repository", binary=ServerBinary(binary), options=options)
        server.start()
        try:
            with http_server(b'[{"name": "model", "version": "1", "state": "READY"}]', server.address.http_port):
                server.wait_ready()
        finally:
            server.stop()


@contextmanager
def http_server(answer: bytes, port: int) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
