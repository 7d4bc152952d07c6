"""The gateway on a free port: in a thread of this process, or as the command `swiftdiffusion gateway`."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import uvicorn
from openai import OpenAI

from file_server import wait_for
from serve_process import COMMAND
from swiftdiffusion.clients.gateway.app import gateway
from swiftdiffusion.clients.gateway.settings import GatewaySettings

KEY = "sk-nobody-asks-for-it"
"""What the SDK sends where the gateway has no keys."""


class _Lines(logging.Handler):
    """Everything that this process logs meanwhile."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class Gateway(ABC):
    """One that runs.

    Attributes:
        url: Of its root.
    """

    url: str

    def openai(self, key: str = KEY) -> OpenAI:
        """The official client, which does not try again by itself."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def metrics(self) -> dict[str, float]:
        """Its own, by name and labels."""
        text = httpx2.get(f"{self.url}/metrics").raise_for_status().text
        pairs = [line.rpartition(" ") for line in text.splitlines() if line.startswith("swiftdiffusion_gateway_")]
        return {name: float(value) for name, _, value in pairs}

    def runs(self) -> float:
        """Pictures on their way."""
        return sum(value for name, value in self.metrics().items() if name.startswith("swiftdiffusion_gateway_runs{"))

    @property
    @abstractmethod
    def log(self) -> str:
        """What it has logged."""


class GatewayThread(Gateway):
    """One in a thread, whose loop can be looked at.

    Attributes:
        loop: Its event loop.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, settings: GatewaySettings) -> None:
        config = uvicorn.Config(
            gateway(settings), port=0, log_config=None, access_log=False, timeout_graceful_shutdown=5
        )
        self._server, self._lines = uvicorn.Server(config), _Lines()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Returns when it answers."""
        logging.getLogger().addHandler(self._lines)
        for name in ("swiftdiffusion", "uvicorn"):
            logging.getLogger(name).setLevel(logging.INFO)
        self._thread.start()
        wait_for(lambda: self._server.started)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        """As SIGTERM does."""
        self._server.should_exit = True
        self._thread.join(30)
        logging.getLogger().removeHandler(self._lines)
        assert not self._thread.is_alive()

    def tasks(self) -> list[str]:
        """Names of all that its loop has to do, for the server itself and for callers."""

        async def names() -> list[str]:
            return [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]

        return asyncio.run_coroutine_threadsafe(names(), self.loop).result(10)

    @property
    def log(self) -> str:
        return "\n".join(self._lines.lines)

    def _run(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self._server.serve()

        asyncio.run(serve())


class GatewayProcess(Gateway):
    """The command.

    Attributes:
        process: Its process.
    """

    def __init__(self, log_path: Path, *arguments: str) -> None:
        self._log_path = log_path
        with log_path.open("w") as log:
            command = [COMMAND, "gateway", "--port", "0", *arguments]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        wait_for(lambda: "running on" in self.log or self.process.poll() is not None, 60)
        address = re.search(r"running on (http://127\.0\.0\.1:\d+)", self.log)
        assert address, self.log
        self.url = address[1]

    @property
    def log(self) -> str:
        return self._log_path.read_text("utf-8")


@contextmanager
def gateway_thread(settings: GatewaySettings) -> Iterator[GatewayThread]:
    """One that is stopped afterwards."""
    running = GatewayThread(settings)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def gateway_process(log_path: Path, *arguments: str) -> Iterator[GatewayProcess]:
    """One that is ended afterwards, unless it has."""
    running = GatewayProcess(log_path, *arguments)
    try:
        yield running
    finally:
        running.process.terminate()
        running.process.wait(60)
