"""`swiftdiffusion probe`: for an orchestrator's probes, such as Kubernetes' of the kind `exec`."""

from typing import Annotated

import typer

from ..common.draining import is_draining
from .errors import LauncherError
from .running import RunningServer, find_server, starting_serve
from .watch_command import DEFAULT_URL, Url
from .watch_status import WatchStatus


def probe(
    url: Url = DEFAULT_URL,
    ready: Annotated[
        bool, typer.Option("--ready", help="Whether requests can be sent; else whether a restart is needed.")
    ] = False,
) -> None:
    """Exit 0 if a server is alive, or ready, else 1 with the reason.

    Alive: tritonserver and who watches it run; a model that is down is being loaded again, which a restart would not
    do faster. Ready: every model is there, and the server is not about to stop.
    """
    try:
        server = find_server(url)
    except LauncherError as error:
        serve = None if ready else starting_serve(url)
        if serve is None:
            _fail(str(error))
        typer.echo(f"alive: tritonserver is being started by process {serve}")
        return
    if server.watcher is None:
        _fail("nobody watches: `swiftdiffusion serve`, or `watch`, has ended or hangs")
    status = WatchStatus.read(server.runtime)
    down = {} if status is None else status.down
    sentences = [f"{model} is down: {each.reason}" for model, each in sorted(down.items())]
    if not ready:
        typer.echo("\n".join(["alive", *sentences]))
        return
    if is_draining(server.runtime):
        sentences.append("it is about to stop and takes no new requests")
    if not sentences and not _is_ready(server):
        sentences.append("Triton says that it is not ready")
    if sentences:
        _fail("\n".join(sentences))
    typer.echo("ready")


def _is_ready(server: RunningServer) -> bool:
    try:
        return server.api.is_ready()
    except LauncherError:
        return False


def _fail(reason: str) -> None:
    typer.echo(reason, err=True)
    raise typer.Exit(1)
