"""How the end of a load gets from `lora_store` to the denoiser that needs it, without anybody waiting. Needs no torch.

A ticket says where a LoRA is, or the name of a file that will say so.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, TextIO

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from ..errors import InvalidRequestError, RequestError, UnexpectedError, from_report, to_report
from ..runtime import runtime_directory

FORGOTTEN_AFTER_S = 3600.0
"""Outcomes that no denoiser read, because their requests ended before, are removed after so long."""

MAX_OUTCOME_BYTES = 2**20
WRITER_SUFFIX = ".writer"
"""Of a file that a writing process keeps locked for as long as it lives."""
_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA in the host cache.

    Attributes:
        path: Its canonical form, to be leased before use.
        source: The tier that it came from: `host`, `disk` or `remote`.
        load_ms: How long that took.
    """

    path: Path
    source: str
    load_ms: float


class Ticket:
    """One LoRA of one request: loaded, failed, or to be asked for again.

    Attributes:
        name: The LoRA's name in the catalogue.
    """

    def __init__(self, name: str, pending: Outcome | None = None, result: LoadedLora | RequestError | None = None):
        """A ticket with a result, or with the outcome that will bring one."""
        self.name = name
        self._pending, self._result = pending, result

    def poll(self) -> LoadedLora | None:
        """The loaded LoRA, or None while it is loading.

        Raises:
            RequestError: If loading failed; at every further call too.
        """
        if self._result is None and self._pending is not None:
            self._result = self._pending.take()
        if isinstance(self._result, RequestError):
            raise self._result
        return self._result

    @property
    def lost(self) -> bool:
        """Whether its load ended without a result, because the process that loaded it died."""
        return not self.done and self._pending is not None and self._pending.abandoned and not self.done

    @property
    def done(self) -> bool:
        """Whether `poll` gives a LoRA or raises."""
        if self._result is None and self._pending is not None:
            self._result = self._pending.take()
        return self._result is not None

    def to_entry(self) -> dict[str, object]:
        """The ticket as JSON values."""
        if isinstance(self._result, RequestError):
            return {"name": self.name, "error": to_report(self._result)}
        if self._result is not None:
            return {"name": self.name, **_values(self._result)}
        return {"name": self.name, "outcome": None if self._pending is None else self._pending.path.name}

    def discard(self) -> None:
        """For a request that ends early: its outcome, if there is one already, need not be kept."""
        if self._pending is not None:
            self._pending.path.unlink(missing_ok=True)


class Outcomes:
    """The directory in which loads leave their results, one file for each request that waits for one."""

    def __init__(self, host_directory: Path, directory: Path | None = None) -> None:
        """Opens the directory.

        Args:
            host_directory: The server's host cache: every loaded LoRA lies in it.
            directory: Where outcomes are left; None for that of the server.
        """
        self.host_directory = host_directory
        self.directory = runtime_directory() / "lora-loads" if directory is None else directory
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self._writer: tuple[str, TextIO] | None = None

    def expect(self) -> Outcome:
        """A new outcome that this process will write, unless it dies: its name begins with the process's lock."""
        self._remove_old()
        if self._writer is None:
            name = secrets.token_hex(8)
            self._writer = name, (self.directory / f"{name}{WRITER_SUFFIX}").open("w")
            fcntl.flock(self._writer[1], fcntl.LOCK_EX)
        return self.named(self._writer[0] + secrets.token_hex(8))

    def close(self) -> None:
        """Gives up what `expect` promised and nobody wrote yet."""
        if self._writer is not None:
            self._writer[1].close()
            self._writer = None

    def named(self, name: str) -> Outcome:
        """The outcome with a name that `expect` gave out."""
        return Outcome(self.directory / name, self.host_directory)

    def _remove_old(self) -> None:
        for file in self.directory.iterdir():
            try:
                if file.suffix != WRITER_SUFFIX and time.time() - file.stat().st_mtime > FORGOTTEN_AFTER_S:
                    file.unlink(missing_ok=True)
            except FileNotFoundError:  # its request read it meanwhile
                continue


@dataclass(frozen=True)
class Outcome:
    """A file that will hold the result of one load.

    Attributes:
        path: The file.
        host_directory: Where a loaded LoRA has to lie.
    """

    path: Path
    host_directory: Path

    @property
    def abandoned(self) -> bool:
        """Whether the process that was to write it is gone; what it wrote before is there still."""
        try:
            with self.path.with_name(self.path.name[:16] + WRITER_SUFFIX).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            return True
        return True

    def put(self, result: LoadedLora | RequestError) -> None:
        """Writes the result, all of it at once."""
        if isinstance(result, LoadedLora):
            content: dict[str, object] = _values(result)
        else:
            content = {"error": to_report(result)}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content), "utf-8")
        partial.rename(self.path)

    def take(self) -> LoadedLora | RequestError | None:
        """The result, whose file is then removed; None while there is none."""
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_OUTCOME_BYTES)
        except FileNotFoundError:
            return None
        self.path.unlink(missing_ok=True)
        try:
            written = _outcome_validator().validate_json(content)
            if isinstance(written, _Failed):
                return written.error.as_error()
            return LoadedLora(_checked(Path(written.path), self.host_directory), written.source, written.load_ms)
        except (ValidationError, InvalidRequestError) as error:
            return UnexpectedError(f"the outcome of loading a LoRA is not readable: {error}")


def tickets_to_json(tickets: list[Ticket]) -> str:
    """The tickets of one request, as the text that travels to its denoiser."""
    return json.dumps([ticket.to_entry() for ticket in tickets])


def tickets_from_json(text: str, outcomes: Outcomes) -> list[Ticket]:
    """The tickets that `tickets_to_json` wrote.

    Raises:
        InvalidRequestError: If the text is anything else (a client called an inner model by itself).
    """
    return [_ticket(entry, outcomes) for entry in _entries(text)]


def raise_failure(text: str) -> None:
    """Raises the first failure among the tickets that `tickets_to_json` wrote; pending ones are left as they are."""
    for entry in _entries(text):
        if entry.error is not None:
            raise entry.error.as_error()


def _entries(text: str) -> list[_Entry]:
    try:
        return _tickets_validator().validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(f"TICKETS is not what `lora_store` writes: {place} {first['msg']}") from None


def _ticket(entry: _Entry, outcomes: Outcomes) -> Ticket:
    given = [entry.error is not None, entry.outcome is not None, entry.path is not None]
    if sum(given) != 1:
        raise InvalidRequestError("TICKETS is not what `lora_store` writes: needed is a path, an outcome or an error")
    if entry.error is not None:
        return Ticket(entry.name, result=entry.error.as_error())
    if entry.outcome is not None:
        return Ticket(entry.name, pending=outcomes.named(entry.outcome))
    if entry.path is None or entry.source is None or entry.load_ms is None:
        raise InvalidRequestError("TICKETS is not what `lora_store` writes: a path needs source and load_ms")
    path = _checked(Path(entry.path), outcomes.host_directory)
    return Ticket(entry.name, result=LoadedLora(path, entry.source, entry.load_ms))


def _values(loaded: LoadedLora) -> dict[str, object]:
    return {**asdict(loaded), "path": str(loaded.path)}


def _checked(path: Path, host_directory: Path) -> Path:
    """A path that names a file of the host cache itself."""
    if path.parent != host_directory or path.suffix != ".safetensors":
        raise InvalidRequestError("TICKETS is not what `lora_store` writes: path is not one of the host cache")
    return path


_Source = Annotated[str, StringConstraints(pattern="^(host|disk|remote)$")]
_Milliseconds = Annotated[float, Field(ge=0)]


@validated(frozen=True, config=_CONFIG)
class _Report:
    type: str
    message: str

    def as_error(self) -> RequestError:
        return from_report({"type": self.type, "message": self.message})


@validated(frozen=True, config=_CONFIG)
class _Entry:
    name: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    path: str | None = None
    source: _Source | None = None
    load_ms: _Milliseconds | None = None
    outcome: Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")] | None = None
    error: _Report | None = None


@validated(frozen=True, config=_CONFIG)
class _Loaded:
    path: str
    source: _Source
    load_ms: _Milliseconds


@validated(frozen=True, config=_CONFIG)
class _Failed:
    error: _Report


@cache
def _tickets_validator() -> TypeAdapter[list[_Entry]]:
    return TypeAdapter(list[_Entry])


@cache
def _outcome_validator() -> TypeAdapter[_Loaded | _Failed]:
    return TypeAdapter(_Loaded | _Failed)
