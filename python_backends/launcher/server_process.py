"""How a tritonserver is started: its command line, and a process that ends with the launcher's."""

import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from .address import ServerAddress
from .binary import ServerBinary
from .directories import plain_path
from .grpc_tls import GrpcTls
from .options import ServerOptions
from .processes import terminate_with_parent
from .restriction import AdminKey
from .shared_memory import region_prefix

# The shell's pid becomes the server's by exec: so the prefix can hold a pid that is known before the server exists.
_EXEC = 'exec "$@" "--backend-config=python,shm-region-prefix-name={prefix}"'


def server_command(
    repository: Path,
    address: ServerAddress,
    binary: ServerBinary,
    directory: Path,
    admin_key: AdminKey | None,
    grpc_tls: GrpcTls | None,
    options: ServerOptions,
) -> list[str]:
    """The server's, for `spawn`.

    Args:
        repository: what it serves.
        address: where it listens.
        binary: which it is.
        directory: a private one, where links may be put.
        admin_key: opens its administration; None leaves that open.
        grpc_tls: of gRPC, if any.
        options: tuning.
    """
    command = [
        str(binary.path),
        f"--model-repository={plain_path(repository, directory)}",
        f"--http-address={address.host}",
        f"--http-port={address.http_port}",
        f"--grpc-address={address.host}",
        f"--grpc-port={address.grpc_port}",
        f"--metrics-address={address.host}",
        f"--metrics-port={address.metrics_port}",
    ]
    backends = binary.assemble_backends(directory)
    if backends is not None:
        command.append(f"--backend-directory={backends}")
    if admin_key is not None:
        command += admin_key.arguments()
    if grpc_tls is not None:
        command += grpc_tls.arguments()
    return command + options.arguments(binary, repository)


def spawn(command: Sequence[str], environment: Mapping[str, str], log_path: Path) -> "subprocess.Popen[bytes]":
    """Starts it in a process group of its own; it ends with the thread that called, if that is the main thread.

    Args:
        command: its command line.
        environment: all its variables.
        log_path: its output is appended there.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    with log_path.open("ab") as log:
        return subprocess.Popen(
            ["/bin/sh", "-c", _EXEC.format(prefix=region_prefix("$$")), "sh", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal is for the launcher alone
            preexec_fn=terminate_with_parent if in_main_thread else None,
        )
