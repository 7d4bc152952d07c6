"""Files in which the processes that load LoRAs leave the results for those that wait. Needs no torch."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, TextIO

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from ...common.errors import (
    InvalidRequestError,
    LoraUnavailableError,
    RequestError,
    UnexpectedError,
    from_report,
    to_report,
)
from ...common.runtime_directory import runtime_directory

logger = logging.getLogger(__name__)

FORGOTTEN_AFTER_S = 3600.0
"""Outcomes that no denoiser read, because their requests ended before, are removed after so long."""

MAX_OUTCOME_BYTES = 2**20
WRITER_SUFFIX = ".writer"
"""Of a file that a writing process keeps locked for as long as it lives."""
CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


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
        """Writes the result, all of it at once; where the disk has no room for it, an empty file."""
        if isinstance(result, LoadedLora):
            content: dict[str, object] = to_values(result)
        else:
            content = {"error": to_report(result)}
        partial = self.path.with_suffix(".partial")
        try:
            partial.write_text(json.dumps(content), "utf-8")
        except OSError:
            logger.exception("%s", partial)
            os.truncate(partial, 0)
        partial.rename(self.path)

    def take(self) -> LoadedLora | RequestError | None:
        """The result, whose file is then removed; None while there is none."""
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_OUTCOME_BYTES)
        except FileNotFoundError:
            return None
        self.path.unlink(missing_ok=True)
        if not content:
            return LoraUnavailableError("LORAS: the server's directory for temporary files is full; try again later")
        try:
            written = _outcome_validator().validate_json(content)
            if isinstance(written, _Failed):
                return written.error.as_error()
            return LoadedLora(checked_path(Path(written.path), self.host_directory), written.source, written.load_ms)
        except (ValidationError, InvalidRequestError) as error:
            return UnexpectedError(f"the outcome of loading a LoRA is not readable: {error}")


def to_values(loaded: LoadedLora) -> dict[str, object]:
    """A loaded LoRA as JSON values."""
    return {**asdict(loaded), "path": str(loaded.path)}


def checked_path(path: Path, host_directory: Path) -> Path:
    """A path that names a file of the host cache itself."""
    if path.parent != host_directory or path.suffix != ".safetensors":
        raise InvalidRequestError("TICKETS is not what `lora_store` writes: path is not one of the host cache")
    return path


Source = Annotated[str, StringConstraints(pattern="^(host|disk|remote)$")]
Milliseconds = Annotated[float, Field(ge=0)]


@validated(frozen=True, config=CONFIG)
class Report:
    """An error as `errors.to_report` writes it."""

    type: str
    message: str

    def as_error(self) -> RequestError:
        """The error."""
        return from_report({"type": self.type, "message": self.message})


@validated(frozen=True, config=CONFIG)
class _Loaded:
    path: str
    source: Source
    load_ms: Milliseconds


@validated(frozen=True, config=CONFIG)
class _Failed:
    error: Report


@cache
def _outcome_validator() -> TypeAdapter[_Loaded | _Failed]:
    return TypeAdapter(_Loaded | _Failed)
