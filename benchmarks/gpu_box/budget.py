"""Parts that share a span of time: each in a process with a limit of its own, and none ends the others."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Part:
    """A command.

    Attributes:
        name: Of the part.
        command: Program and arguments.
        limit_s: Seconds after which it is killed.
        least_s: With fewer left it is not begun.
        environment: Variables of its own.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    least_s: float = 15
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
        name: Of the part.
        code: Exit code, negative after a signal; None if it was not begun.
        seconds: So long it ran.
    """

    name: str
    code: int | None
    seconds: float = 0.0

    def __str__(self) -> str:
        """A line of the summary."""
        if self.code is None:
            return f"{self.name:13s} no time left"
        return f"{self.name:13s} exit code {self.code:3d}, {self.seconds:4.0f} s"


class Budget:
    """Seconds that parts use up one after the other, from its making on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    def limit_s(self, part: Part) -> float | None:
        """A part's limit, shortened to what is left; None if that is too little to begin."""
        left = self._end - self._clock()
        return None if left < part.least_s else min(part.limit_s, left)

    def run(self, part: Part, log: Path, directory: Path) -> Outcome:
        """Runs a part in a directory, its output appended to a log; whatever of it is left is killed."""
        limit = self.limit_s(part)
        if limit is None:
            return Outcome(part.name, None)
        start = self._clock()
        with log.open("ab") as output:
            try:
                process = subprocess.Popen(
                    part.command,
                    cwd=directory,
                    env=os.environ | part.environment,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            except OSError as error:
                output.write(f"{error}\n".encode())
                return Outcome(part.name, 127)
            with suppress(subprocess.TimeoutExpired):
                process.wait(limit)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return Outcome(part.name, process.wait(), self._clock() - start)


def merged(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Result files of `benchmarks/gpu.py` as one: the machine of the first, the parts and commands of all."""
    result: dict[str, Any] = {}
    for record in records:
        result = {**record, **result}
    return result | {"command": "; ".join(record["command"] for record in records)}
