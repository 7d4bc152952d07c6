"""One tritonserver process: started, watched, stopped without leftovers."""

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ..backend.dead_models import is_dead
from ..common.pulse import seen, seen_models
from ..shared_memory.host_directory import remove_host_cache, remove_stale_host_caches
from .address import ServerAddress, choose_address
from .binary import ServerBinary, find_server_binary
from .directories import (
    PORT_FILE,
    RUNTIME_VARIABLE,
    make_private_directory,
    make_runtime_directory,
    remove_stale_directories,
)
from .errors import LauncherError, ModelLoadError, ServerDiedError, StartupTimeoutError
from .grpc_tls import GrpcTls
from .loading import check_loaded, repository_index
from .log import read_log, tail
from .options import ServerOptions, check_repository, models_of
from .ports import listens
from .processes import kill_group, signal_group
from .repository_api import RepositoryApi
from .restriction import KEY_FILE, AdminKey, admin_headers
from .server_process import server_command, spawn
from .shared_memory import check_room, region_prefix, remove_regions, remove_stale_regions

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


class TritonServer:
    """A Triton server on a model repository, with every model loaded; a context manager that waits until it is ready.

    The server is in a process group of its own, ends with the thread that started it (if that is the main thread) and
    leaves nothing behind: no stub process, no shared memory, no files but `log_file`.

    Args:
        repository: the model repository directory.
        http_port: port of the HTTP API; None takes a free one. `grpc_port` and `metrics_port` likewise.
        log_file: the server's and the backends' output; None keeps it in a private file until `stop`.
        host: address to listen on. Loopback, because whoever reaches the model control API can load code.
        admin_key: opens the server's administration, which is closed then; None leaves it open to all.
        grpc_tls: certificate and key of gRPC; None leaves it without TLS.
        options: tuning.
        environment: variables added to this process's for the server and the backends.
        binary: which tritonserver; None finds one.

    Raises (from `start`, `wait_ready` and `with`):
        LauncherError: one of its subclasses in `errors`.
    """

    def __init__(
        self,
        repository: str | Path,
        http_port: int | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        log_file: str | Path | None = None,
        *,
        host: str = "127.0.0.1",
        admin_key: AdminKey | None = None,
        grpc_tls: GrpcTls | None = None,
        options: ServerOptions | None = None,
        environment: Mapping[str, str] | None = None,
        binary: ServerBinary | None = None,
    ) -> None:
        self.repository = Path(repository).resolve()
        self.options = options or ServerOptions()
        self._wanted_ports = (http_port, grpc_port, metrics_port)
        self._host = host
        self._admin_key = admin_key
        self._grpc_tls = grpc_tls
        self._log_file = Path(log_file) if log_file is not None else None
        self._environment = dict(environment or {})
        self._binary = binary
        self._address: ServerAddress | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None
        self._runtime: Path | None = None
        self._command: list[str] = []
        self._log_start = 0

    @property
    def address(self) -> ServerAddress:
        """Where the server listens, known once it was started."""
        if self._address is None:
            raise LauncherError("the server was not started")
        return self._address

    @property
    def http_url(self) -> str:
        """URL of the HTTP API."""
        return f"http://{self.address.reachable_host}:{self.address.http_port}"

    @property
    def api(self) -> RepositoryApi:
        """The server's model repository API, with its key."""
        own = self._admin_key.headers if self._admin_key else {}
        return RepositoryApi(self.http_url, own | admin_headers(self.options.extra_arguments))

    @property
    def grpc_url(self) -> str:
        """URL of the gRPC API."""
        scheme = "grpc" if self._grpc_tls is None else "grpcs"
        return f"{scheme}://{self.address.reachable_host}:{self.address.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self.address.reachable_host}:{self.address.metrics_port}/metrics"

    @property
    def runtime(self) -> Path:
        """The runtime directory of its models, anew after each start."""
        if self._runtime is None:
            raise LauncherError("the server was not started")
        return self._runtime

    @property
    def home(self) -> Path:
        """The private directory, which outlives its restarts."""
        if self._directory is None:
            raise LauncherError("the server was not started")
        return self._directory

    @property
    def admin_key_path(self) -> Path | None:
        """Where the server's key lies, for this user alone; None if it has none, or was not started."""
        return self._directory / KEY_FILE if self._directory is not None and self._admin_key is not None else None

    @property
    def started(self) -> bool:
        """Whether there is something to stop: between `start` and `stop`."""
        return self._directory is not None and self._process is not None

    @property
    def pid(self) -> int:
        """Process id of the server, which is also its process group."""
        return self._running().pid

    @property
    def returncode(self) -> int | None:
        """Exit status of the server, negative for a signal; None while it runs."""
        return self._running().poll()

    @property
    def log_path(self) -> Path:
        """Where the log is written."""
        if self._log_file is not None:
            return self._log_file
        if self._directory is None:
            raise LauncherError("the server was not started")
        return self._directory / "server.log"

    def start(self) -> None:
        """Starts the process and returns at once."""
        if self._process is not None:
            raise LauncherError("the server was started already")
        check_repository(self.repository)
        binary = self._binary or find_server_binary()
        inherited = os.environ | self._environment
        if not any(argument.startswith("--backend-directory") for argument in self.options.extra_arguments):
            binary.check(inherited)
        self._address = choose_address(self._host, *self._wanted_ports)
        remove_stale_regions()
        remove_stale_directories()
        remove_stale_host_caches()
        check_room(self.repository, self.options.shm_default_mib)
        self._directory = make_private_directory()
        try:
            own = self.repository, self.address, binary, self._directory
            self._command = server_command(*own, self._admin_key, self._grpc_tls, self.options)
            if self._admin_key is not None:
                self._admin_key.write(self._directory / KEY_FILE)
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            self._runtime = make_runtime_directory(self._directory)
            (self._directory / PORT_FILE).write_text(str(self.address.http_port), "ascii")
            self._environment = binary.environment(inherited) | {RUNTIME_VARIABLE: str(self._runtime)}
            self._spawn()
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        logger.info("started %s (%s), pid %d", binary.path, binary.source, self.pid)

    def start_again(self) -> None:
        """Starts it anew where it ended by itself, on the same ports and with the same log, and returns at once.

        After `remove_remains`.
        """
        if self._directory is None:
            raise LauncherError("the server is stopped")
        self._runtime = make_runtime_directory(self._directory)
        self._spawn()

    def remove_remains(self) -> None:
        """Ends what is left of the server's processes, and removes what they had in memory and files."""
        process = self._running()
        kill_group(process.pid)
        process.wait()
        remove_regions(region_prefix(process.pid))
        if self._runtime is not None:
            remove_host_cache(self._runtime)
            shutil.rmtree(self._runtime, ignore_errors=True)

    def wait_ready(self, look: Callable[[], object] | None = None) -> None:
        """Waits until the server and every model of the repository are ready.

        Args:
            look: a watcher's: a model whose process dies while it loads is no failure then.

        Raises:
            ModelLoadError: models failed; the message has each one's name and its own error.
            ServerDiedError: the server ended.
            StartupTimeoutError: it took longer than `options.startup_timeout_seconds`.
        """
        deadline = time.monotonic() + self.options.startup_timeout_seconds
        failed: ModelLoadError | None = None
        while True:
            self.check_alive()
            listening = listens(self.pid, self.address.http_port)  # else another server may answer there
            index = repository_index(self.api, self._read_log) if listening else None
            if index is not None and not any(entry.get("state") in ("LOADING", "UNLOADING") for entry in index):
                try:
                    check_loaded(models_of(self.repository), index, self._read_log())
                    if all(each.is_up for model in seen_models(self.runtime) for each in seen(model, self.runtime)):
                        return
                except ModelLoadError as error:
                    failed = error
                    if look is None or not any(is_dead(failure.reason) for failure in error.failures):
                        raise
            if look is not None:
                look()
            if time.monotonic() > deadline:
                raise failed or StartupTimeoutError(
                    f"the server was not ready after {self.options.startup_timeout_seconds:.0f} s; last of its log:\n"
                    + tail(self._read_log(), 5)
                )
            time.sleep(_POLL_SECONDS)

    def check_alive(self) -> None:
        """Does nothing while the server runs.

        Raises:
            ServerDiedError: it ended; the message has its status and the last of its log.
        """
        status = self.returncode
        if status is not None:
            raise ServerDiedError(status, tail(self._read_log(), 8))

    def stop(self) -> None:
        """Ends the server: requests in flight may finish, then everything of it is removed. May be called again."""
        process, directory = self._process, self._directory
        if process is None or directory is None:
            return
        try:
            if process.poll() is None:
                signal_group(process.pid, signal.SIGCONT)  # a stopped stub would block its model's unloading
                process.terminate()
                process.wait(self.options.stop_timeout_seconds + 5)
        except subprocess.TimeoutExpired:
            logger.warning("the server did not end within its time; killing it")
        finally:
            self.remove_remains()
            shutil.rmtree(directory, ignore_errors=True)
            self._directory = None

    def __enter__(self) -> "TritonServer":
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise LauncherError("the server was not started")
        return self._process

    def _spawn(self) -> None:
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        self._process = spawn(self._command, self._environment, self.log_path)

    def _read_log(self) -> str:
        """Since the last start."""
        return read_log(self.log_path, self._log_start)
