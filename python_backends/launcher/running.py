"""A server of this machine that runs already, found by its URL."""

import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from ..common.processes import is_alive, process_state
from ..common.pulse import Seen, seen
from ..common.runtime_directory import LOOKS_WITHIN_S, VARIABLE, default_runtime_directory
from .directories import PORT_FILE, is_private, private_directories
from .errors import LauncherError
from .ports import listens
from .processes import PROC
from .repository_api import RepositoryApi
from .restriction import admin_headers

WATCHER, WATCH_ROOM = "watcher", "watch"


class ServerNotFoundError(LauncherError):
    """No tritonserver of this machine listens at the URL."""


@dataclass(frozen=True)
class RunningServer:
    """One of this user's, whoever started it.

    Attributes:
        pid: process id of tritonserver.
        api: its model repository API.
        runtime: its models' runtime directory.
        arguments: its command line.
        repository: its model repository.
    """

    pid: int
    api: RepositoryApi
    runtime: Path
    arguments: tuple[str, ...]
    repository: Path

    @property
    def home(self) -> Path:
        """Directory for who watches it, which outlives its restarts where it is a launcher's."""
        return self.runtime.parent if is_private(self.runtime.parent) else self.runtime

    @property
    def heals(self) -> bool:
        """Whether models of it can be loaded again."""
        return "--model-control-mode=explicit" in self.arguments

    @property
    def exit_timeout_s(self) -> float:
        """How long it waits for what runs when it is to end."""
        flag = "--exit-timeout-secs="
        return max([float(each[len(flag) :]) for each in self.arguments if each.startswith(flag)], default=30.0)

    @property
    def is_alive(self) -> bool:
        """Whether it runs still."""
        return is_alive(self.pid)

    @property
    def watcher(self) -> Seen | None:
        """Who watches it; None if nobody does."""
        return next((each for each in seen(WATCHER, self.home / WATCH_ROOM) if is_watching(each)), None)

    @property
    def served_by(self) -> int | None:
        """Process of the `swiftdiffusion serve` that started it; None if it was started otherwise."""
        watcher, state = self.watcher, process_state(self.pid)
        return watcher.pid if watcher is not None and state is not None and state.parent == watcher.pid else None

    def stop(self) -> None:
        """Asks who started it to stop it without draining it, else itself."""
        os.kill(self.served_by or self.pid, signal.SIGINT)


def starting_serve(http_url: str) -> int | None:
    """Process of the `swiftdiffusion serve` that is starting a server at a URL, for the first time or again."""
    try:
        port = _port(http_url)
    except ServerNotFoundError:
        return None
    for directory in private_directories():
        for watcher in seen(WATCHER, directory / WATCH_ROOM):
            if is_watching(watcher) and (directory / PORT_FILE).read_text("ascii") == str(port):
                return watcher.pid
    return None


def is_watching(watcher: Seen) -> bool:
    """Whether a watcher lives, and has looked lately."""
    return is_alive(watcher.pid) and watcher.idle_s < LOOKS_WITHIN_S


def find_server(http_url: str) -> RunningServer:
    """The server that listens at a URL.

    Args:
        http_url: `http://HOST:PORT`, of this machine.

    Raises:
        ServerNotFoundError: there is none, or none of this user's.
    """
    port = _port(http_url)
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "tritonserver" and listens(process.pid, port):
            try:
                environment = _environment(process.pid)
                arguments = tuple(process.cmdline())
            except (PermissionError, psutil.AccessDenied) as error:
                raise ServerNotFoundError(
                    f"tritonserver (pid {process.pid}), which listens at {http_url}, is another user's"
                ) from error
            except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
                continue
            flag = "--model-repository="
            repository = next((Path(each[len(flag) :]) for each in arguments if each.startswith(flag)), Path())
            directory = _runtime(process.pid, environment)
            api = RepositoryApi(http_url, admin_headers(arguments))
            return RunningServer(process.pid, api, directory, arguments, repository)
    raise ServerNotFoundError(f"no tritonserver of this machine listens at {http_url}")


def _port(http_url: str) -> int:
    """Of a URL of this machine; ServerNotFoundError for another."""
    try:
        host, port = urlsplit(http_url).hostname, urlsplit(http_url).port
    except ValueError:
        host = port = None
    if host is None or port is None:
        raise ServerNotFoundError(f"the URL is {http_url!r}; wanted: http://HOST:PORT of Triton's HTTP API")
    if not _is_here(host):
        raise ServerNotFoundError(f"the URL is {http_url!r}; wanted: one of this machine's addresses")
    return port


def _is_here(host: str) -> bool:
    """Whether a name or address is one of this machine's."""
    try:
        found = {str(each[4][0]).partition("%")[0] for each in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    own = {each.address.partition("%")[0] for addresses in psutil.net_if_addrs().values() for each in addresses}
    return all(ip_address(each).is_loopback or ip_address(each).is_unspecified or each in own for each in found)


def runtime_directories() -> Iterator[tuple[int, Path]]:
    """Process id and runtime directory of every tritonserver of this user."""
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "tritonserver":
            with suppress(OSError):  # another user's, or it ends
                yield process.pid, _runtime(process.pid, _environment(process.pid))


def _runtime(server: int, environment: Mapping[str, str]) -> Path:
    given = environment.get(VARIABLE)
    return Path(given) if given else default_runtime_directory(server, environment.get("TMPDIR"))


def _environment(pid: int) -> Mapping[str, str]:
    texts = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    return dict(text.decode("utf-8", "surrogateescape").split("=", 1) for text in texts if b"=" in text)
