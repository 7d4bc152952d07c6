"""`swiftdiffusion serve` as a process on free ports, and what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from file_server import wait_for
from swiftdiffusion.python_backends.launcher.model_processes import model_processes
from swiftdiffusion.python_backends.launcher.ports import free_ports

COMMAND = str(Path(sys.executable).with_name("swiftdiffusion"))


class Serving:
    """The command on a repository.

    Args:
        repository: What is served.
        arguments: More of them.
        prefix: A command that starts this one.
        environment: Variables added to this process's.
        how: Options of `subprocess.Popen`.

    Attributes:
        process: The command's.
        http_url: Of the HTTP API.
        grpc_url: Of the gRPC API.
    """

    def __init__(
        self,
        repository: Path,
        *arguments: str,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        **how: Any,
    ) -> None:
        http, grpc, metrics = map(str, free_ports(3))
        self.http_url, self.grpc_url = f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{grpc}"
        ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
        command = [*prefix, COMMAND, "serve", "-r", str(repository), *ports, *arguments]
        pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, **{**pipes, **how})

    def ready_pid(self) -> int:
        """Id of the server's process, once the command says that it is ready, or ready again."""
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            match = re.match(r"ready(: HTTP \S+ .*| again:) +pid (\d+)", line)
            if match:
                return int(match[2])
        raise AssertionError(f"not ready: exit status {self.process.wait()}: {''.join(said)}")

    def first_process(self, model: str) -> int:
        """Of a model, as soon as the server, which starts, has one."""
        found: list[int] = []

        def look() -> bool:
            with suppress(psutil.NoSuchProcess):
                children = psutil.Process(self.process.pid).children()
                servers = [child.pid for child in children if child.name() == "tritonserver"]
                found.extend(each.pid for server in servers for each in model_processes(server) if each.model == model)
            return bool(found)

        wait_for(look, 30)
        return found[0]

    def said(self, pattern: str) -> str:
        """The next line that has something to it."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if re.search(pattern, line):
                return line
        raise AssertionError(f"it never said {pattern}")

    def rest(self) -> str:
        """What it writes after that until it ends; `communicate` would miss what was read ahead."""
        assert self.process.stderr is not None
        messages = self.process.stderr.read()
        self.process.wait(60)
        return messages


@contextmanager
def serving(repository: Path, *arguments: str, **how: Any) -> Iterator[Serving]:
    """Ends it, too."""
    served = Serving(repository, *arguments, **how)
    try:
        yield served
    finally:
        served.process.terminate()
        served.process.communicate(timeout=60)
