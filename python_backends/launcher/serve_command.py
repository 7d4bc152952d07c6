"""`swiftdiffusion serve`: a Triton server on a model repository, from a terminal or as a container's main process."""

import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, TextIO, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..common.draining import begin_draining
from .draining import wait_quiet
from .errors import LauncherError, ModelLoadError
from .grpc_tls import GrpcTls
from .log import LogFollower, model_event
from .options import ServerOptions, models_of
from .restriction import choose_admin_key
from .supervision import Supervisor
from .terminal import unfailing_stderr
from .triton_server import TritonServer
from .watcher import LOOK_EVERY_S, Watcher

_PRIVATE_LOG_BYTES = 16 << 20  # a streamed log needs no more of itself on disk
_NETWORK, _MEMORY, _LIMITS = "Network", "Memory", "Limits"
_DEFAULTS = ServerOptions()


def serve(
    repository: Annotated[
        Path, typer.Option("--repository", "-r", help="Model repository directory.", show_default=True)
    ] = Path("model_repository"),
    http_port: Annotated[int, typer.Option(min=1, max=65535, rich_help_panel=_NETWORK)] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, rich_help_panel=_NETWORK)] = 8001,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535, rich_help_panel=_NETWORK)] = 8002,
    host: Annotated[
        str,
        typer.Option(
            rich_help_panel=_NETWORK,
            help="Address to listen on; 0.0.0.0 to serve a network or to publish a container's ports.",
        ),
    ] = "127.0.0.1",
    restrict: Annotated[
        bool | None,
        typer.Option(
            "--restrict/--no-restrict",
            rich_help_panel=_NETWORK,
            help="Close model control, shared memory, trace, logging and statistics to who has no key: whoever reaches "
            "model control can load code into the server. Default: on every address but loopback.",
            show_default=False,
        ),
    ] = None,
    admin_key_file: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_NETWORK, help="Holds that key. Default: one is made.", dir_okay=False),
    ] = None,
    grpc_cert: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_NETWORK, help="TLS for gRPC (Triton's HTTP has none): the certificate, PEM."),
    ] = None,
    grpc_key: Annotated[Path | None, typer.Option(rich_help_panel=_NETWORK, help="Its private key, PEM.")] = None,
    grpc_root_ca: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_NETWORK, help="Serve only clients with a certificate that this one signed, PEM."),
    ] = None,
    log_file: Annotated[
        Path | None, typer.Option(help="Write the server's log there instead of to the terminal.", dir_okay=False)
    ] = None,
    cuda_memory_pool_mib: Annotated[
        int | None,
        typer.Option(
            min=0,
            rich_help_panel=_MEMORY,
            help="CUDA pool per GPU for tensors between models. Default: by the ControlNets that are there.",
            show_default=False,
        ),
    ] = _DEFAULTS.cuda_memory_pool_mib,
    pinned_memory_pool_mib: Annotated[
        int, typer.Option(min=0, rich_help_panel=_MEMORY, help="Pinned host memory pool.")
    ] = _DEFAULTS.pinned_memory_pool_mib,
    shm_default_mib: Annotated[
        int, typer.Option(min=1, rich_help_panel=_MEMORY, help="Shared memory each backend instance starts with.")
    ] = _DEFAULTS.shm_default_mib,
    shm_growth_mib: Annotated[
        int, typer.Option(min=1, rich_help_panel=_MEMORY, help="Step by which that memory grows.")
    ] = _DEFAULTS.shm_growth_mib,
    http_max_input_mib: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=_LIMITS, help="Largest HTTP request. Needs a newer Triton.")
    ] = None,
    grpc_infer_allocation_pool: Annotated[
        int | None, typer.Option(min=0, rich_help_panel=_LIMITS, help="gRPC request objects kept for reuse.")
    ] = None,
    grpc_max_response_pool: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=_LIMITS, help="Queued streaming responses. Newer Tritons.")
    ] = None,
    startup_timeout: Annotated[
        float, typer.Option(min=1, rich_help_panel=_LIMITS, help="Seconds that loading may take.")
    ] = _DEFAULTS.startup_timeout_seconds,
    grace: Annotated[
        float, typer.Option(min=0, rich_help_panel=_LIMITS, help="Seconds for running requests after SIGTERM.")
    ] = 25.0,
    stop_timeout: Annotated[
        float, typer.Option(min=1, rich_help_panel=_LIMITS, help="Seconds for requests in flight when stopping.")
    ] = _DEFAULTS.stop_timeout_seconds,
    trace_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL", rich_help_panel=_NETWORK, help="OpenTelemetry collector, such as http://HOST:4318/v1/traces."
        ),
    ] = None,
    trace_rate: Annotated[
        int, typer.Option(min=1, rich_help_panel=_NETWORK, help="One request in so many is traced.")
    ] = _DEFAULTS.trace_rate,
    auto_complete_config: Annotated[
        bool, typer.Option(help="Let backends complete their config.pbtxt: starts every backend twice.")
    ] = _DEFAULTS.auto_complete_config,
    extra_arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- TRITONSERVER OPTIONS]", help="Passed to tritonserver.")
    ] = None,
) -> None:
    """Serve a model repository until SIGINT or SIGTERM.

    After SIGTERM new requests are refused, those that run end first. Models whose processes die or hang are loaded
    again; a tritonserver that ends by itself is started again on its ports, but not the third time in a minute.
    """
    options = ServerOptions(
        cuda_memory_pool_mib=cuda_memory_pool_mib,
        pinned_memory_pool_mib=pinned_memory_pool_mib,
        shm_default_mib=shm_default_mib,
        shm_growth_mib=shm_growth_mib,
        http_max_input_mib=http_max_input_mib,
        grpc_infer_allocation_pool=grpc_infer_allocation_pool,
        grpc_max_response_pool=grpc_max_response_pool,
        auto_complete_config=auto_complete_config,
        startup_timeout_seconds=startup_timeout,
        stop_timeout_seconds=stop_timeout,
        trace_endpoint=trace_endpoint,
        trace_rate=trace_rate,
        extra_arguments=tuple(extra_arguments or ()),
    )
    console = Console(file=cast(TextIO, unfailing_stderr()))
    with _stop_signals():
        try:
            key = choose_admin_key(host, restrict, admin_key_file, options.extra_arguments)
            tls = GrpcTls.from_options(grpc_cert, grpc_key, grpc_root_ca)
            ports = (http_port, grpc_port, metrics_port)
            server = TritonServer(repository, *ports, log_file, host=host, admin_key=key, grpc_tls=tls, options=options)
            _run(server, console, log_file is None, grace)
        except KeyboardInterrupt:
            console.print("stopped")
        except (LauncherError, OSError) as error:
            console.print(f"[bold red]error:[/] {_escaped(error)}", highlight=False, soft_wrap=True)
            for line in _lacking(repository) if isinstance(error, ModelLoadError) else ():
                console.print(_escaped(line), highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error


def _run(server: TritonServer, console: Console, streamed: bool, grace_s: float) -> None:
    try:
        server.start()

        def say(text: str) -> None:
            console.print(_escaped(text), highlight=False, soft_wrap=True)

        watcher = Watcher(server, say, server.options.startup_timeout_seconds)
        supervisor = Supervisor(server, watcher, say)
        supervisor.wait_ready(lambda look: _wait_ready(server, console, look))
        follower: LogFollower | None = None
        try:
            addresses = f"HTTP {server.http_url}  gRPC {server.grpc_url}  metrics {server.metrics_url}"
            console.print(f"ready: {addresses}  pid {server.pid}", highlight=False, soft_wrap=True)
            if server.admin_key_path is not None:
                console.print(f"restricted: the key is in {server.admin_key_path}", highlight=False, soft_wrap=True)
            follower = _follow(server) if streamed else None
            try:
                while True:
                    supervisor.check()
                    threading.Event().wait(LOOK_EVERY_S)
            except _Terminated:
                if not supervisor.is_serving:
                    raise
                begin_draining(server.runtime)
                console.print(f"draining: new requests are refused, running ones have {grace_s:g} s")
                if not wait_quiet(server.runtime, grace_s, supervisor.look):
                    console.print("requests are given up")
        finally:
            if streamed:
                (follower or _follow(server)).close()  # a signal may come before there is one
    except LauncherError as error:
        if streamed and server.started:
            console.print(f"the server's log: {_kept_log(server.log_path)}", highlight=False, soft_wrap=True)
        elif isinstance(error, ModelLoadError):
            console.print(f"the server's log: {server.log_path}", highlight=False, soft_wrap=True)
        raise
    finally:
        if server.started:
            console.print("stopping the server")
        server.stop()


def _lacking(repository: Path) -> Iterator[str]:
    """What this machine does not have of what models need, which they say in Triton's words if at all."""
    from .checks import Status
    from .doctor import repository_checks

    for check in repository_checks(repository):
        if check.status is Status.MISSING:
            yield f"missing: {check.subject}: {check.found}; {check.advice}"


def _follow(server: TritonServer) -> LogFollower:
    return LogFollower(server.log_path, _echo, _PRIVATE_LOG_BYTES)


def _wait_ready(server: TritonServer, console: Console, look: Callable[[], object]) -> None:
    """Shows a bar over the models on a terminal, a line per model elsewhere."""
    total = len(models_of(server.repository))
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("loading models", total=total)
        loading: set[str] = set()

        def show(line: str) -> None:
            event = model_event(line)
            if event is None:
                return
            if event.state == "loading":
                loading.add(event.model)
            else:
                loading.discard(event.model)
                progress.advance(task)
                if not console.is_terminal:
                    console.print(f"{event.state} {event.model}", highlight=False)
            progress.update(task, description="loading " + (", ".join(sorted(loading)[:3]) or "models"))

        follower = LogFollower(server.log_path, show)
        try:
            server.wait_ready(look)
        finally:
            follower.close()


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM, for the first time, and SIGHUP end the command as Ctrl-C does."""
    terminated = False

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal terminated
        first, terminated = number == signal.SIGTERM and not terminated, True
        raise _Terminated if first else KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # it is under nohup
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _kept_log(log: Path) -> Path:
    with tempfile.NamedTemporaryFile(prefix="tritonserver-", suffix=".log", delete=False) as kept:
        shutil.copyfile(log, kept.name)
    return Path(kept.name)


def _echo(line: str) -> None:
    print(line, file=unfailing_stderr(), flush=True)


def _escaped(message: object) -> str:
    return str(message).replace("[", "\\[")
