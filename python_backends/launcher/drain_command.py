"""`swiftdiffusion drain`: stops a server as a rolling restart wants it."""

import time
from typing import Annotated

import typer

from ..common.draining import begin_draining, end_draining
from .draining import LOOK_EVERY_S, wait_quiet
from .errors import LauncherError
from .running import RunningServer, find_server
from .watch_command import DEFAULT_URL, Url

STOP_S = 30.0
"""For what follows the last request, beside what tritonserver may take."""


def drain_command(
    url: Url = DEFAULT_URL,
    grace: Annotated[float, typer.Option(min=0, help="Seconds for the requests that run.")] = 120.0,
) -> None:
    """Have a server refuse new requests, wait for those that run, then stop it.

    Refused requests are told to go elsewhere. Exit 1 if some had to be given up. For Kubernetes' preStop; SIGTERM to
    `swiftdiffusion serve` does the same.
    """
    try:
        server = find_server(url)
        begin_draining(server.runtime)
        try:
            in_time = wait_quiet(server.runtime, grace, lambda: _still_there(server))
        except KeyboardInterrupt:
            end_draining(server.runtime)
            raise
        server.stop()
        within_s = server.exit_timeout_s + STOP_S
        deadline = time.monotonic() + within_s
        while server.is_alive:
            if time.monotonic() > deadline:
                raise LauncherError(f"tritonserver (pid {server.pid}) has not ended within {within_s:.0f} s")
            time.sleep(LOOK_EVERY_S)
    except (LauncherError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if not in_time:
        typer.echo(f"requests that had not ended within {grace:g} s were given up", err=True)
        raise typer.Exit(1)


def _still_there(server: RunningServer) -> None:
    if not server.is_alive:
        raise LauncherError("tritonserver ended meanwhile")
