"""A trace: which requests arrive when. JSON lines: a header, then a request a line."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

FORMAT = "swiftdiffusion trace"
VERSION = 1


class TraceError(ValueError):
    """A file that is no trace; the message names its line."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TracedLora(_Line):
    """A LoRA of a request: its rank of popularity, from 0, and its weight."""

    rank: int = Field(ge=0)
    scale: float = 1.0


class TracedRequest(_Line):
    """One request.

    Attributes:
        at: arrival, seconds after the trace's start.
        prompt: what to show.
        seed: noise of the start.
        steps: denoising steps; None: the server's default.
        controlnets: their ranks of popularity, from 0.
        loras: with their ranks.
    """

    at: float = Field(ge=0, allow_inf_nan=False)
    prompt: str
    seed: int = Field(ge=0)
    steps: int | None = Field(default=None, ge=1)
    controlnets: tuple[int, ...] = ()
    loras: tuple[TracedLora, ...] = ()


L = TypeVar("L", bound=_Line)


class _Header(_Line):
    format: Literal["swiftdiffusion trace"]
    version: Literal[1]
    arguments: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their arrival.

    Attributes:
        arguments: what they were drawn from.
        requests: all of them.
    """

    arguments: Mapping[str, Any]
    requests: tuple[TracedRequest, ...]

    def text(self) -> str:
        """The file's contents."""
        header = {"format": FORMAT, "version": VERSION, "arguments": self.arguments}
        lines = [json.dumps(header), *(request.model_dump_json(exclude_none=True) for request in self.requests)]
        return "\n".join(lines) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256 of the file's contents."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def write(self, file: Path) -> None:
        """Writes it, and the directories above it."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.text(), encoding="utf-8")


def read_trace(file: Path) -> Trace:
    """Reads what `Trace.write` wrote.

    Raises:
        TraceError: the file is no trace, or a request of it arrives before the one above it.
    """
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise TraceError(f"{file} is no text; wanted: a file of `swiftdiffusion trace`") from error
    header = _parsed(_Header, lines[0], file, 1)
    requests = [_parsed(TracedRequest, line, file, number) for number, line in enumerate(lines[1:], 2)]
    for number, (earlier, later) in enumerate(pairwise(requests), 3):
        if later.at < earlier.at:
            raise TraceError(f"{file}, line {number}: at is {later.at:g}; wanted: at least {earlier.at:g}, as above it")
    return Trace(header.arguments, tuple(requests))


def _parsed(kind: type[L], text: str, file: Path, number: int) -> L:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise TraceError(f"{file}, line {number}: {f'{where}: ' if where else ''}{first['msg']}") from error
