"""Who may come in: a TOML file of API keys, read again when it changes.

[alice]
key = "sk-alice-…"            # or: key_sha256 = "…", its SHA-256 in hexadecimal
concurrent = 4                # requests for pictures at once; absent: 8
"""

import base64
import binascii
import hashlib
import hmac
import logging
import re
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from .errors import ApiError

logger = logging.getLogger(__name__)

LOOKED_AT_EVERY_S = 1.0


class KeysError(ValueError):
    """The file of keys cannot be used; the message says why, without a key."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    key: Annotated[str, StringConstraints(min_length=16, max_length=512, pattern="^[!-~]*$")] | None = None
    key_sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None
    concurrent: Annotated[int, Field(ge=1, le=10_000)] = 8

    @model_validator(mode="after")
    def _one_key(self) -> "_Entry":
        if (self.key is None) == (self.key_sha256 is None):
            raise ValueError("wanted: either key or key_sha256")
        return self

    @property
    def digest(self) -> bytes:
        return _digest(self.key) if self.key is not None else bytes.fromhex(self.key_sha256 or "")


_Entries = TypeAdapter(dict[Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_.-]{1,64}$")], _Entry])


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        name: of the key; without keys, the address.
        concurrent: requests for pictures that it may have at once; None: any number.
    """

    name: str
    concurrent: int | None = None


class Keys:
    """The keys of a gateway, and who is busy under each."""

    def __init__(self, file: Path | None) -> None:
        """Reads them.

        Args:
            file: None lets everybody in.

        Raises:
            KeysError: If it cannot be used. Later, what it held before goes on.
        """
        self._file = file
        self._busy: Counter[str] = Counter()
        self._looked_at, self._signature = time.monotonic(), self._now()
        self._callers = {} if file is None else _read(file)

    def caller(self, authorization: str | None, address: str) -> Caller:
        """Who asks with a header: `Bearer KEY`, or `Basic` with the key as the password.

        Args:
            authorization: The header; None if there is none.
            address: Where the connection comes from.

        Raises:
            ApiError: If nobody has that key.
        """
        if self._file is None:
            return Caller(address)
        self._refresh(self._file)
        given, found = _digest(_key_of(authorization or "")), None
        for digest, caller in self._callers.items():  # all of them: how long it takes tells nothing
            if hmac.compare_digest(digest, given):
                found = caller
        if found is None:
            said = "this gateway does not know the key" if authorization else "there is no key"
            raise ApiError(401, f"{said}; wanted: Authorization: Bearer KEY", code="invalid_api_key")
        return found

    @contextmanager
    def busy(self, caller: Caller) -> Iterator[None]:
        """While a caller has pictures made.

        Raises:
            ApiError: If it has too many requests at once.
        """
        if caller.concurrent is None:
            yield
            return
        if self._busy[caller.name] >= caller.concurrent:
            raise ApiError(
                429,
                f"{caller.concurrent} requests of this key are being served; allowed: no more at once",
                "rate_limit_error",
                code="rate_limit_exceeded",
                retry_after=1,
            )
        self._busy[caller.name] += 1
        try:
            yield
        finally:
            self._busy[caller.name] -= 1

    def _refresh(self, file: Path) -> None:
        if time.monotonic() - self._looked_at < LOOKED_AT_EVERY_S:
            return
        self._looked_at = time.monotonic()
        signature = self._now()
        if signature != self._signature:
            self._signature = signature
            try:
                self._callers = _read(file)
                logger.info("read the keys of %d callers", len(self._callers))
            except KeysError as error:
                logger.error("the keys stay as they were: %s", error)

    def _now(self) -> tuple[int, int, int] | None:
        try:
            stat = self._file.stat() if self._file else None
        except OSError:
            return None
        return None if stat is None else (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _read(file: Path) -> dict[bytes, Caller]:
    document: dict[str, object] = {}
    try:
        document = tomllib.loads(file.read_text("utf-8"))
        entries = _Entries.validate_python(document)
    except ValidationError as error:
        raise KeysError(f"{file}: {_without_names(error, list(document))}") from None
    except (OSError, ValueError) as error:
        place = re.search(r"at line \d+, column \d+", str(error))
        said = error.strerror if isinstance(error, OSError) else f"it is no TOML{f' ({place[0]})' if place else ''}"
        raise KeysError(f"{file}: {said}") from None
    callers = {entry.digest: Caller(name, entry.concurrent) for name, entry in entries.items()}
    if len(callers) < len(entries):
        raise KeysError(f"{file}: two callers have the same key")
    return callers


def _without_names(error: ValidationError, names: list[str]) -> str:
    """Which entry is wrong, and how: a name, of a caller or of a field, may be a key that was put in its place."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    entry = f"entry {names.index(str(first['loc'][0])) + 1}"
    if first["type"] == "extra_forbidden":
        return f"{entry}: a field that there is not; allowed: {', '.join(_Entry.model_fields)}"
    if first["type"] == "model_type":
        return f"{entry}: it is no table; wanted: [NAME], below it key = …"
    field = first["loc"][1] if len(first["loc"]) > 1 and first["loc"][1] in _Entry.model_fields else None
    return f"{entry}: {first['msg']}" if field is None else f"{entry}: {field}: {first['msg']}"


def _key_of(authorization: str) -> str:
    kind, _, given = authorization.partition(" ")
    if kind.lower() == "bearer":
        return given.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(given, validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8")).digest()
