"""One tritonserver process: started, watched, stopped without leftovers."""

import contextlib
import http.client
import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .binary import ServerBinary, find_server_binary
from .errors import (
    InvalidRepositoryError,
    LauncherError,
    ModelFailure,
    ModelLoadError,
    ServerDiedError,
    StartupTimeoutError,
)
from .log import error_messages, loaded_models, tail
from .options import ServerOptions, models_of
from .ports import check_ports, free_ports
from .processes import command_line, kill_group, pid_namespace, signal_group, terminate_with_parent
from .shared_memory import PREFIX_VARIABLE, region_prefix, remove_regions, remove_stale_regions

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_PRIVATE_DIRECTORY = re.compile(r"swiftdiffusion[_-]\d+[_-](?P<pid>\d+)(_\w+)?")
# The shell's pid becomes the server's by exec: so the prefix can hold a pid that is known before the server exists.
_EXEC = 'export {variable}="{prefix}"; exec "$@" "--backend-config=python,shm-region-prefix-name={prefix}"'


@dataclass(frozen=True)
class ServerAddress:
    """Where a server listens."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def reachable_host(self) -> str:
        """A host that a client on this machine can use, in the form URLs want."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host


class TritonServer:
    """A Triton server on a model repository, with every model loaded; a context manager that waits until it is ready.

    The server is in a process group of its own, ends with the thread that started it (if that is the main thread) and
    leaves nothing behind: no stub process, no shared memory, no files but `log_file`.

    Args:
        repository: the model repository directory.
        http_port: port of the HTTP API; None takes a free one. `grpc_port` and `metrics_port` likewise.
        log_file: the server's and the backends' output; None keeps it in a private file until `stop`.
        host: address to listen on. Loopback, because whoever reaches the model control API can load code.
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
        options: ServerOptions | None = None,
        environment: Mapping[str, str] | None = None,
        binary: ServerBinary | None = None,
    ) -> None:
        self.repository = Path(repository).resolve()
        self.options = options or ServerOptions()
        self._wanted_ports = (http_port, grpc_port, metrics_port)
        self._host = host
        self._log_file = Path(log_file) if log_file is not None else None
        self._environment = dict(environment or {})
        self._binary = binary
        self._address: ServerAddress | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None

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
    def grpc_url(self) -> str:
        """URL of the gRPC API."""
        return f"grpc://{self.address.reachable_host}:{self.address.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self.address.reachable_host}:{self.address.metrics_port}/metrics"

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
        self._check_repository()
        binary = self._binary or find_server_binary()
        self._choose_ports()
        remove_stale_regions()
        _remove_stale_directories()
        self._directory = Path(tempfile.mkdtemp(prefix=f"swiftdiffusion_{pid_namespace()}_{os.getpid()}_"))
        try:
            arguments = [str(binary.path), *self._arguments(binary, self._directory)]
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            self._process = self._spawn(arguments, binary.environment(os.environ | self._environment))
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        logger.info("started %s (%s), pid %d", binary.path, binary.source, self._process.pid)

    def wait_ready(self, still_wanted: Callable[[], bool] = lambda: True) -> None:
        """Waits until the server and every model of the repository are ready.

        Args:
            still_wanted: asked all the time; waiting ends when it says no.

        Raises:
            ModelLoadError: models failed; the message has each one's name and its own error.
            ServerDiedError: the server ended.
            StartupTimeoutError: it took longer than `options.startup_timeout_seconds`.
        """
        deadline = time.monotonic() + self.options.startup_timeout_seconds
        while still_wanted():
            self.check_alive()
            index = self._repository_index()
            if index is not None and not any(entry.get("state") in ("LOADING", "UNLOADING") for entry in index):
                self._check_index(index)
                return
            if time.monotonic() > deadline:
                raise StartupTimeoutError(
                    f"the server was not ready after {self.options.startup_timeout_seconds:.0f} s; last of its log:\n"
                    + tail(self.log_path, 5)
                )
            time.sleep(_POLL_SECONDS)

    def check_alive(self) -> None:
        """Does nothing while the server runs.

        Raises:
            ServerDiedError: it ended; the message has its status and the last of its log.
        """
        status = self.returncode
        if status is not None:
            cause = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            raise ServerDiedError(f"tritonserver ended by itself ({cause}); last of its log:\n{tail(self.log_path, 8)}")

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
            kill_group(process.pid)
            process.wait()
            remove_regions(region_prefix(process.pid))
            shutil.rmtree(_backends_directory(process.pid), ignore_errors=True)
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise LauncherError("the server was not started")
        return self._process

    def _check_repository(self) -> None:
        if not self.repository.is_dir():
            raise InvalidRepositoryError(f"the model repository {self.repository} is not a directory")
        if not models_of(self.repository):
            raise InvalidRepositoryError(f"the model repository {self.repository} holds no model")

    def _choose_ports(self) -> None:
        flags = ("--http-port", "--grpc-port", "--metrics-port")
        check_ports(self._host, {f: p for f, p in zip(flags, self._wanted_ports, strict=True) if p is not None})
        free = iter(free_ports(len(flags), self._host))
        self._address = ServerAddress(self._host, *(next(free) if p is None else p for p in self._wanted_ports))

    def _arguments(self, binary: ServerBinary, directory: Path) -> list[str]:
        address = self.address
        arguments = [
            f"--model-repository={self.repository}",
            f"--http-address={address.host}",
            f"--http-port={address.http_port}",
            f"--grpc-address={address.host}",
            f"--grpc-port={address.grpc_port}",
            f"--metrics-address={address.host}",
            f"--metrics-port={address.metrics_port}",
        ]
        backends = binary.assemble_backends(directory)
        if backends is not None:
            arguments.append(f"--backend-directory={backends}")
        return arguments + self.options.arguments(binary)

    def _spawn(self, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        script = _EXEC.format(variable=PREFIX_VARIABLE, prefix=region_prefix("$$"))
        in_main_thread = threading.current_thread() is threading.main_thread()
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                ["/bin/sh", "-c", script, "sh", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for the launcher alone
                preexec_fn=terminate_with_parent if in_main_thread else None,
            )

    def _repository_index(self) -> list[dict[str, Any]] | None:
        request = urllib.request.Request(f"{self.http_url}/v2/repository/index", data=b"", method="POST")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=5) as response:
                return json.load(response)
        except urllib.error.HTTPError:  # listening, but the API is restricted: then the log tells
            return [{"name": model, "state": state} for model, state in loaded_models(self._log()).items()]
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException):
            return None  # not listening yet

    def _log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def _check_index(self, index: list[dict[str, Any]]) -> None:
        down = {entry["name"]: entry.get("reason", "") for entry in index if entry.get("state") != "READY"}
        missing = set(models_of(self.repository)) - {entry["name"] for entry in index}
        if not down and not missing:
            return
        messages = error_messages(self._log())
        reasons = {name: reason or _reason(name, messages) for name, reason in down.items()}
        reasons |= {name: _reason(name, messages) for name in missing}
        dependents = {name for name, reason in reasons.items() if f"ensemble '{name}' depends on" in reason}
        dependents = dependents if len(dependents) < len(reasons) else set()
        failures = tuple(ModelFailure(n, _cleaned(r)) for n, r in sorted(reasons.items()) if n not in dependents)
        raise ModelLoadError(failures, tuple(sorted(dependents)), self.log_path)


def _reason(model: str, messages: list[str]) -> str:
    """Why a model failed, from the log's errors: its own failure, else the last message that names it."""
    name = re.escape(model)
    own = [
        match[1] for m in messages if (match := re.match(rf"failed to load '{name}' version \d+: (.+)", m, re.DOTALL))
    ]
    named = [message for message in messages if re.search(rf"(?<![\w.-]){name}(?![\w-])", message)]
    return (own or named or ["the server gives no reason; see its log"])[-1]


def _cleaned(reason: str) -> str:
    """The error alone: without Triton's status words before it and the empty lines in it."""
    reason = re.sub(r"^(version \d+ is at UNAVAILABLE state: )?(Internal: |Invalid argument: )?", "", reason)
    return "\n  ".join(line.strip() for line in reason.strip(" ;\n").splitlines() if line.strip())


def _backends_directory(pid: int | str) -> Path:
    """Where the backends of a server keep files for each other."""
    return Path(tempfile.gettempdir()) / f"swiftdiffusion-{os.getuid()}-{pid}"


def _remove_stale_directories() -> None:
    """Removes the private directories of launchers and servers that were killed."""
    temporary = Path(tempfile.gettempdir())
    owned = [temporary.glob(f"swiftdiffusion_{pid_namespace()}_*"), temporary.glob(_backends_directory("*").name)]
    for path in itertools.chain.from_iterable(owned):
        match = _PRIVATE_DIRECTORY.fullmatch(path.name)
        if match and not command_line(int(match["pid"])):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                shutil.rmtree(path)
