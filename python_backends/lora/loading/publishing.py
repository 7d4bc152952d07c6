"""LoRA files made canonical in the host cache, or refused. Needs no torch."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from cachetools import LRUCache

from ...common.errors import InvalidRequestError, LoraUnavailableError, RequestError
from ...shared_memory.host_cache import HostCache, HostCacheFullError
from ..files.outside_settings import NO_SETTINGS, OutsideSettings
from .load_results import Loaded, LoadError

REMEMBERED_REFUSALS = 4096
Canonicalise = Callable[[Path, Path, OutsideSettings], tuple[str, ...]]
"""Checks a hostile file, under what is said of it outside, and writes its canonical form to the second path; gives what
has to be told of it. Raises a RequestError with a sentence about the file."""


class Publisher:
    """Puts contents into the host cache and knows which ones this server does not take.

    A content is named by its SHA-256, or with what is said of it outside: `OutsideSettings.key`.

    Invariant: a content in `_refusals` is not in the host cache.
    """

    def __init__(self, host_cache: HostCache, canonicalise: Canonicalise, base: str = "") -> None:
        """Refuses nothing yet.

        Args:
            host_cache: Where canonical LoRAs are published.
            base: Names the checkpoint that they are made for, where a server has several: a canonical form may depend
                on its weights.
            canonicalise: Makes files canonical.
        """
        self._host, self._canonicalise, self._base = host_cache, canonicalise, base
        self._mutex = threading.Lock()
        self._refusals: LRUCache[str, LoadError] = LRUCache(REMEMBERED_REFUSALS)

    def find(self, content: str) -> Loaded | None:
        """The LoRA of a content, which counts as used now; None if it is not in the host cache."""
        path = self._host.find(self._key(content))
        return None if path is None else Loaded(path, "host")

    def refusal(self, content: str) -> LoadError | None:
        """Why a content is not taken; None if nothing is known against it."""
        with self._mutex:
            return self._refusals.get(content)

    def publish(
        self,
        file: Path,
        content: str,
        source: str,
        outside: OutsideSettings = NO_SETTINGS,
        is_unchanged: Callable[[], bool] = lambda: True,
    ) -> Loaded:
        """Makes a file canonical in the host cache, unless its content is there or is known to be bad.

        Args:
            file: The file.
            content: Its name.
            source: The tier it came from.
            outside: What is said of the file outside it.
            is_unchanged: Tells whether what was read is what was hashed.

        Raises:
            LoadError: If it is refused, was changed meanwhile, or there is no room.
        """
        refusal = self.refusal(content)
        if refusal is not None:
            raise refusal.bare()
        found = self.find(content)
        if found is not None:
            return found
        try:
            with self._host.reserve(min(file.stat().st_size, self._host.max_bytes)) as reservation:
                notes = self._canonicalise(file, reservation.path, outside)
                if not is_unchanged():
                    raise _changed()
                return Loaded(reservation.publish(self._key(content)), source, notes)
        except RequestError as error:
            if not is_unchanged():
                raise _changed() from error
            raise self._refuse(content, LoadError("content", str(error), type(error))) from error
        except HostCacheFullError as error:
            if error.for_ever:
                raise self._refuse(content, LoadError("too_large", str(error), InvalidRequestError)) from error
            raise LoadError("no_room", str(error), LoraUnavailableError) from error

    def _key(self, content: str) -> str:
        return hashlib.sha256(f"{self._base} {content}".encode()).hexdigest() if self._base else content

    def _refuse(self, content: str, refusal: LoadError) -> LoadError:
        with self._mutex:
            self._refusals[content] = refusal.bare()
        return refusal


def _changed() -> LoadError:
    return LoadError("changed", "its file changed while it was read; try again", LoraUnavailableError)
