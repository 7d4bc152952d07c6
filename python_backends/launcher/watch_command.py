"""`swiftdiffusion watch`: heals a server that `swiftdiffusion serve` did not start, from beside it."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Annotated, TextIO, cast

import typer
from rich.console import Console

from .errors import LauncherError
from .running import RunningServer, ServerNotFoundError, find_server
from .terminal import unfailing_stderr
from .watcher import LOOK_EVERY_S, Watcher

FIND_EVERY_S = 1.0

Url = Annotated[str, typer.Option(envvar="SWIFTDIFFUSION_HTTP_URL", help="Triton's HTTP API, on this machine.")]
DEFAULT_URL = "http://127.0.0.1:8000"


def watch(
    url: Url = DEFAULT_URL,
    load_timeout: Annotated[float, typer.Option(min=1, help="Seconds that loading a model may take.")] = 600.0,
) -> None:
    """Load models of a server again whose processes die or hang, until SIGINT or SIGTERM.

    It needs to see the server's processes (in Kubernetes: shareProcessNamespace) and its files for temporary use, as
    the same user. `swiftdiffusion serve` does this itself.
    """
    console = Console(file=cast(TextIO, unfailing_stderr()))
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    try:
        while (server := _found(url, stop, say)) is not None:
            say(f"watching tritonserver, pid {server.pid}, at {url}")
            watcher = Watcher(server, say, load_timeout)
            while server.is_alive and not stop.wait(LOOK_EVERY_S):
                watcher.look()
            watcher.close()
            if not server.is_alive:
                say("tritonserver has ended; waiting for another one")
    except (LauncherError, OSError) as error:
        say(f"error: {error}")
        raise typer.Exit(1) from error


def _found(url: str, stop: threading.Event, say: Callable[[str], None]) -> RunningServer | None:
    """The server, once there is one; None if this is to stop."""
    said = False
    while not stop.is_set():
        try:
            server = find_server(url)
        except ServerNotFoundError as error:
            if not said:
                say(f"{error}; waiting for one")
            said = True
            stop.wait(FIND_EVERY_S)
            continue
        if not server.heals:
            raise LauncherError(
                f"tritonserver at {url} was started without --model-control-mode=explicit --load-model='*': "
                "no model of it can be loaded again"
            )
        if server.watcher is not None:
            raise LauncherError(f"tritonserver at {url} is watched already, by process {server.watcher.pid}")
        return server
    return None
