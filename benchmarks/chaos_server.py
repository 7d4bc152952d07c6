"""`swiftdiffusion serve` as a process, faults in it, and what its server holds: regions, files, threads, sockets."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from swiftdiffusion.python_backends.common.processes import process_state
from swiftdiffusion.python_backends.common.pulse import ROOM
from swiftdiffusion.python_backends.launcher.errors import LauncherError
from swiftdiffusion.python_backends.launcher.model_processes import ModelProcess, model_processes
from swiftdiffusion.python_backends.launcher.ports import free_ports
from swiftdiffusion.python_backends.launcher.processes import PROC, group_members
from swiftdiffusion.python_backends.launcher.running import RunningServer, find_server
from swiftdiffusion.python_backends.launcher.shared_memory import SHARED_MEMORY, region_prefix
from swiftdiffusion.python_backends.launcher.watch_status import WATCH_FILE, WatchStatus

COMMAND = str(Path(sys.executable).with_name("swiftdiffusion"))
TRITONSERVER = "tritonserver"
READY_S = 300.0
MOST_DOWN = 2
"""No fault while so many models are down: where loading takes longer than from fault to fault, all would be."""

_READY = re.compile(r"ready(: HTTP | again:)")
_ENDED = re.compile(r"tritonserver ended by itself \((?P<how>[^)]*)\)")
_HEALED = re.compile(r"(?P<model>\S+) is loaded again, after (?P<seconds>[\d.]+) s")


class ServeProcess:
    """The command on a repository and free ports; a context manager that waits until it is ready.

    Attributes:
        urls: By protocol.
        lines: What it has said.
        pids: Of every tritonserver that it has started.
    """

    def __init__(self, repository: Path, log: Path) -> None:
        http, grpc, metrics = map(str, free_ports(3))
        self.urls = {"http": f"http://127.0.0.1:{http}", "grpc": f"grpc://127.0.0.1:{grpc}"}
        self.lines: list[str] = []
        self.pids: set[int] = set()
        ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics, "--log-file", str(log)]
        self.process = subprocess.Popen(
            [COMMAND, "serve", "-r", str(repository), *ports], stderr=subprocess.PIPE, text=True
        )
        threading.Thread(target=self._read, name="serve", daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    @property
    def is_serving(self) -> bool:
        """Whether tritonserver has been ready since it was started last."""
        last = next((line for line in reversed(self.lines) if _READY.match(line) or _ENDED.search(line)), "")
        return _READY.match(last) is not None

    @property
    def server(self) -> RunningServer:
        """Its tritonserver; LauncherError if none listens."""
        server = find_server(self.urls["http"])
        self.pids.add(server.pid)
        return server

    @property
    def ends(self) -> dict[str, int]:
        """How tritonserver has ended by itself, and how often."""
        return dict(Counter(match["how"] for line in self.lines if (match := _ENDED.search(line))))

    @property
    def heals_s(self) -> dict[str, list[float]]:
        """Seconds that models took to be loaded again."""
        found: dict[str, list[float]] = {}
        for match in filter(None, map(_HEALED.match, self.lines)):
            found.setdefault(match["model"], []).append(float(match["seconds"]))
        return dict(sorted(found.items()))

    def probe(self) -> str | None:
        """Why `swiftdiffusion probe --ready` says that requests cannot be sent; None if they can."""
        asked = [COMMAND, "probe", "--ready", "--url", self.urls["http"]]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        return answer.stderr.strip() if answer.returncode else None

    def remains(self) -> list[str]:
        """What is left of all its servers; nothing once it has ended."""
        regions = [path.name for pid in self.pids for path in SHARED_MEMORY.glob(f"{region_prefix(pid)}*")]
        return regions + [f"process {member}" for pid in self.pids for member in group_members(pid)]

    def __enter__(self) -> ServeProcess:
        deadline = time.monotonic() + READY_S
        while not self.is_serving:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError("it does not get ready:\n" + "\n".join(self.lines))
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)


@dataclass
class Faults:
    """Kills and stops processes of a server, tritonserver itself too.

    Attributes:
        made: How often, by model and signal.
        last_at: When the last was, of the monotonic clock.
        regions: Of Triton's Python backend → whose process had it when it was harmed.
    """

    serve: ServeProcess
    seed: int
    made: Counter[str] = field(default_factory=Counter)
    last_at: float = 0.0
    regions: dict[str, str] = field(default_factory=dict)

    async def every(self, seconds: float, is_servers_turn: Callable[[], bool], most: int | None = None) -> None:
        """One after each pause, in models that load too; none while tritonserver itself starts, or MOST_DOWN are down.

        Args:
            seconds: Of the pause.
            is_servers_turn: Whether the next is to kill tritonserver.
            most: How many in models; None: no end.
        """
        chance = random.Random(self.seed)
        while True:
            await asyncio.sleep(seconds)
            if not self.serve.is_serving:
                continue
            with suppress(LauncherError, ProcessLookupError):
                server = self.serve.server
                if is_servers_turn():
                    self._harm(ModelProcess(server.pid, TRITONSERVER, is_stopped=False), signal.SIGKILL)
                    continue
                status = WatchStatus.read(server.runtime)
                if status is not None and len(status.down) >= MOST_DOWN:
                    continue
                if most is not None and self.made.total() - self.made[f"{TRITONSERVER} {signal.SIGKILL.name}"] >= most:
                    continue
                victims = [each for each in model_processes(server.pid) if each.model and not each.is_stopped]
                victims.sort(key=lambda each: each.model)
                self._harm(chance.choice(victims), chance.choice((signal.SIGKILL, signal.SIGSTOP)))

    def _harm(self, victim: ModelProcess, how: signal.Signals) -> None:
        what = f"{victim.model} {how.name}"
        if (region := _region(victim.pid)) is not None:
            self.regions[region] = what
        os.kill(victim.pid, how)
        self.made[what] += 1
        self.last_at = time.monotonic()


@dataclass(frozen=True)
class Holdings:
    """What a server holds at a moment.

    Attributes:
        pid: Of tritonserver.
        regions: Of Triton's Python backend; those that no living process has are `ownerless`.
        files: Of requests, by directory of the runtime directory.
        threads: By model, tritonserver's too.
        descriptors: Likewise.
        zombies: Dead processes that tritonserver has not taken note of.
    """

    pid: int
    regions: frozenset[str]
    ownerless: frozenset[str]
    files: Counter[str]
    threads: Counter[str]
    descriptors: Counter[str]
    zombies: int

    @classmethod
    def of(cls, server: RunningServer) -> Holdings:
        """Looks."""
        processes = {server.pid: TRITONSERVER} | {each.pid: each.model for each in model_processes(server.pid)}
        regions = frozenset(path.name for path in SHARED_MEMORY.glob(f"{region_prefix(server.pid)}*"))
        threads, descriptors = Counter[str](), Counter[str]()
        for pid, model in processes.items():
            with suppress(psutil.NoSuchProcess):
                threads[model] += psutil.Process(pid).num_threads()
                descriptors[model] += psutil.Process(pid).num_fds()
        children = psutil.Process(server.pid).children()
        return cls(
            server.pid,
            regions,
            regions - {_region(pid) for pid in processes},
            _files(server.runtime),
            threads,
            descriptors,
            sum((state := process_state(child.pid)) is not None and not state.is_alive for child in children),
        )

    def totals(self) -> dict[str, object]:
        """As JSON; its models together."""
        counted: dict[str, object] = {}
        for what, by_model in (("threads", self.threads), ("descriptors", self.descriptors)):
            counted[f"tritonserver_{what}"] = by_model[TRITONSERVER]
            counted[f"models_{what}"] = by_model.total() - by_model[TRITONSERVER]
        regions = {"regions": len(self.regions), "regions_of_no_process": len(self.ownerless)}
        return {**regions, "zombies": self.zombies, **counted, "files": dict(self.files)}


def _region(pid: int) -> str | None:
    """The region of a stub: its second argument."""
    try:
        arguments = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return arguments[2].decode("utf-8", "surrogateescape") if len(arguments) > 2 else None


def _files(runtime: Path) -> Counter[str]:
    """Of requests: by the directory in the runtime directory."""
    kept = {ROOM, WATCH_FILE}
    paths = (path.relative_to(runtime) for path in runtime.rglob("*") if path.is_file())
    return Counter(path.parts[0] for path in paths if path.parts[0] not in kept and len(path.parts) > 1)
