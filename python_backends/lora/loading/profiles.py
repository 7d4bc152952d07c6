"""Bounds that `swiftdiffusion profile-lora` found, kept beside the LoRAs as `NAME.profile.json`. Needs no torch."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ...common.filesystem import as_path, sha256_of
from .catalogue_index import CatalogueError, first_mistake, read_bounded

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

SUFFIX = ".profile.json"
MAX_PROFILE_BYTES = 2**20
SETTLED_AFTER_NS = 2_000_000_000
"""Two changes within a file system's clock tick have one mtime; one older than this cannot hide another."""

Signature = tuple[int, ...]


class Profile(BaseModel):
    """What the catalogue reads of a profile.

    Attributes:
        bound: k, in steps of runs of `steps`.
        steps: Of the measured runs; None where somebody wrote a bound for runs of any length.
        sha256: Of the LoRA file that was measured; None for whatever file has the name.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    bound: Annotated[int, Field(ge=0, le=10_000)] | None = None
    steps: Annotated[int, Field(ge=1, le=10_000)] | None = None
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None


@dataclass(frozen=True)
class _Known:
    signature: Signature
    value: Profile | str | None


class Profiles:
    """The profiles of one catalogue; each is read again when it changes."""

    def __init__(self, directory: Path, warn: Callable[[str], None]) -> None:
        """Reads nothing yet; `warn` is told of each profile that is of no use."""
        self._directory, self._warn = directory, warn
        self._profiles: dict[str, _Known] = {}
        self._hashes: dict[str, _Known] = {}

    def of(self, name: str, local_file: Path | None, sha256: str | None) -> Profile:
        """The profile of a LoRA; an empty one if there is none, or only one of another file of that name.

        A local file is hashed the first time that its profile is asked for.

        Args:
            name: In the catalogue.
            local_file: Where it is; None for a remote one.
            sha256: What the catalogue says that it hashes to, or None.
        """
        path = self._directory / as_path(f"{name}{SUFFIX}")
        profile = _cached(self._profiles, path, self._read)
        if not isinstance(profile, Profile):
            return Profile()
        content = sha256
        if local_file is not None and profile.sha256 is not None:
            content = str(_cached(self._hashes, local_file, _content_of))
        if None not in (content, profile.sha256) and content != profile.sha256:
            self._warn(f"{path} is left out: it was measured on another file")
            return Profile()
        return profile

    def _read(self, path: Path) -> Profile | None:
        try:
            return Profile.model_validate_json(read_bounded(path, MAX_PROFILE_BYTES))
        except ValidationError as error:
            self._warn(f"a profile is left out: {path}: {first_mistake(error)}")
        except (CatalogueError, OSError) as error:
            self._warn(f"a profile is left out: {error}")
        return None


def signature_of(path: Path) -> Signature:
    """Size, mtime and inode of what a path leads to; empty if that is nothing."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _cached(cache: dict[str, _Known], path: Path, read: Callable[[Path], Profile | str | None]) -> Profile | str | None:
    """What was read of a file, unless it has changed; None without one."""
    signature = signature_of(path)
    if not signature:
        return None
    known = cache.get(str(path))
    if known is None or known.signature != signature or abs(time.time_ns() - signature[1]) < SETTLED_AFTER_NS:
        cache[str(path)] = known = _Known(signature, read(path))
    return known.value


def _content_of(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        return f"not readable: {error}"
