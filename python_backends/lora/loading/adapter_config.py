"""PEFT's `adapter_config.json` beside a LoRA's file, here or in its store. Needs no torch."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.errors import InvalidRequestError, LoraUnavailableError
from ...common.filesystem import sha256_of
from ...common.sentences import mib
from ..files.outside_settings import ADAPTER_CONFIG, OutsideSettings, needs_settings
from .catalogue_index import CatalogueError, read_bounded
from .fetch_errors import FetchError
from .load_results import LoadError

if TYPE_CHECKING:
    from .catalogue import CatalogueEntry
    from .disk_cache import DiskCache
    from .fetching import Fetcher

MAX_CONFIG_BYTES = 2**20
MAX_HEADER_BYTES = 16 * 2**20


def local_settings(entry: CatalogueEntry) -> OutsideSettings:
    """What is said of a local file beside it and in the catalogue.

    Raises:
        LoadError: If it is too large.
        OSError: If it cannot be read.
    """
    place = entry.adapter_config
    if not _lacks_settings(Path(entry.location)):
        return OutsideSettings(None, entry.alpha)
    if place is None:
        return OutsideSettings(None, entry.alpha, has_strange_config=True)
    try:
        config = _read(Path(place)) if stat.S_ISREG(Path(place).stat().st_mode) else None
    except FileNotFoundError:
        config = None
    return OutsideSettings(config, entry.alpha)


class RemoteAdapterConfigs:
    """Fetches what stands beside remote files, and keeps it with them on disk.

    That a store has none is not kept: it is asked again when the LoRA is loaded again, for it may have got one.
    """

    def __init__(self, disk: DiskCache, fetcher: Fetcher) -> None:
        """Keeps both."""
        self._disk, self._fetcher = disk, fetcher

    def wanted(self, entry: CatalogueEntry, file: Path) -> bool:
        """Whether a fetched file may have settings beside it: PEFT named its tensors, and it has none itself."""
        return entry.adapter_config is not None and _lacks_settings(file)

    def kept(self, entry: CatalogueEntry) -> bytes | None:
        """What was fetched before; None if it has to be fetched."""
        held = self._disk.find(_identity(entry))
        if held is None:
            return None
        with held:
            return _read(held.path) or None  # an empty one stood for none once

    def fetch(self, entry: CatalogueEntry) -> bytes | None:
        """What stands beside the file in its store; None if nothing does.

        Raises:
            LoadError: If the store does not tell, or it is too large.
        """
        with self._disk.partial() as partial:
            try:
                self._fetcher.fetch(str(entry.adapter_config), partial, None)
            except FetchError as error:
                if error.kind == "not_found":
                    return None
                reason = f"the {ADAPTER_CONFIG} beside its file could not be fetched: {error}"
                raise LoadError(error.kind, reason, LoraUnavailableError) from error
            config = _read(partial)
            self._disk.add(_identity(entry), partial, sha256_of(partial)).close()
            return config


def _identity(entry: CatalogueEntry) -> str:
    return f"{entry.identity}|{ADAPTER_CONFIG}"


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_CONFIG_BYTES)
    except CatalogueError:
        reason = f"the {ADAPTER_CONFIG} beside its file has more than {mib(MAX_CONFIG_BYTES)}, which is the limit"
        raise LoadError("too_large", reason, InvalidRequestError) from None


def _lacks_settings(file: Path) -> bool:
    """Whether a safetensors file has PEFT's names, but neither its metadata nor alphas; False for no such file."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > MAX_HEADER_BYTES:
            return False
        try:
            header = json.loads(opened.read(length))
            return needs_settings(header) and "lora_adapter_metadata" not in header.get("__metadata__", {})
        except (ValueError, RecursionError, TypeError, AttributeError):
            return False
