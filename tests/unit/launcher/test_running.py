"""Which URLs may be those of a server of this machine."""

from __future__ import annotations

import socket

import pytest

from swiftdiffusion.python_backends.launcher.ports import free_ports
from swiftdiffusion.python_backends.launcher.running import ServerNotFoundError, find_server, starting_serve


@pytest.mark.parametrize("host", ["192.0.2.1", "[2001:db8::1]", "nowhere.invalid"])
def test_another_machine_is_not_this_one(host: str) -> None:
    url = f"http://{host}:8000"
    with pytest.raises(ServerNotFoundError, match="wanted: one of this machine's addresses"):
        find_server(url)
    assert starting_serve(url) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", socket.gethostname()])
def test_its_own_addresses_and_names_are(host: str) -> None:
    (port,) = free_ports(1)
    with pytest.raises(ServerNotFoundError, match="no tritonserver of this machine listens"):
        find_server(f"http://{host}:{port}")


@pytest.mark.parametrize("url", ["http://127.0.0.1", "http://127.0.0.1:abc", "127.0.0.1:8000", "http://:8000"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ServerNotFoundError, match="wanted: http://HOST:PORT"):
        find_server(url)
