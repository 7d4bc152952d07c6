"""Which content an entry of the catalogue had when it was fetched: files that servers may share. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger = logging.getLogger(__name__)

SHA256 = re.compile("[0-9a-f]{64}")
PRUNED_AT_OPENING, PRUNED_AT_A_TIME = 4096, 32


class ContentIndex:
    """A directory with a small file per identity, named by its hash, that holds the SHA-256 of its content.

    Each use of `put` also looks at some of the files and removes those whose content is gone, in turns through all of
    them: it adds one and looks at many, so the directory grows with the contents and not with time. Who calls a method
    other than `get` is the only one to do so, among threads and processes; so whatever is no entry is a leftover.
    """

    def __init__(self, directory: Path, has: Callable[[str], bool]) -> None:
        """Opens the index and prunes it, up to a number of files.

        Args:
            directory: Made if need be.
            has: Whether a content is there.
        """
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory, self._has = directory, has
        self._unseen: list[Path] = []
        self._prune(PRUNED_AT_OPENING)

    def get(self, identity: str) -> str | None:
        """The content of an identity, which may be gone; None if nothing is known."""
        return _read(self._file(identity))

    def put(self, identity: str, sha256: str) -> None:
        """Notes the content of an identity."""
        self._prune(PRUNED_AT_A_TIME)
        file = self._file(identity)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"sha256": sha256}), "utf-8")
        partial.rename(file)

    def _prune(self, most: int) -> None:
        if not self._unseen:
            self._unseen = list(self._directory.iterdir())
            random.shuffle(self._unseen)  # else processes that live shortly would see the same files each time
        for _ in range(min(most, len(self._unseen))):
            file = self._unseen.pop()
            sha256 = _read(file)
            if sha256 is None or not self._has(sha256):
                file.unlink(missing_ok=True)

    def _file(self, identity: str) -> Path:
        return self._directory / f"{hashlib.sha256(identity.encode('utf-8')).hexdigest()}.json"


def _read(file: Path) -> str | None:
    try:
        sha256 = json.loads(file.read_text("utf-8"))["sha256"]
        return sha256 if SHA256.fullmatch(sha256) else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        logger.warning("%s is corrupt", file)
        return None
