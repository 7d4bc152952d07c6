"""Which LoRAs a server has: files of the operator's directory, and what its `catalogue.json` says. Needs no torch."""

from __future__ import annotations

import difflib
import heapq
import logging
import os
import time
import unicodedata
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.errors import UnknownLoraError
from ...common.filesystem import as_path, as_text
from ...common.sentences import shown
from .beside import PEFT_FILE, SUFFIX, local_config, remote_config
from .catalogue_index import Annotation, CatalogueError, lora_name, read_index
from .profiles import SETTLED_AFTER_NS, Profiles, Signature, signature_of

if TYPE_CHECKING:
    from ...request.loras import LoraDefaults

logger = logging.getLogger(__name__)

INDEX = "catalogue.json"
COMPARED = 200
"""Most names that an unknown one is compared with in earnest: comparing takes long."""


@dataclass(frozen=True)
class CatalogueEntry:
    """One LoRA of the catalogue.

    Attributes:
        name: What requests call it.
        location: Absolute path of a local file, or the fsspec URL of a remote one.
        sha256: What the file must hash to, in lower-case hexadecimal; None where the operator does not say.
        bound: The index's bound of its asynchronous loading, in steps; None where it has none.
        alpha: What the index says of the LoRA's alpha; None where it says nothing.
        defaults: Of requests that name it.
        identity: Changes when size, mtime or inode of the local file or of the settings beside it change, or the
            location, sha256 or alpha: what was learnt about an entry with one identity holds for every entry with it.
    """

    name: str
    location: str
    sha256: str | None
    bound: int | None
    alpha: float | None
    defaults: LoraDefaults
    identity: str

    @property
    def is_remote(self) -> bool:
        """Whether it has to be fetched."""
        return is_remote(self.location)

    @property
    def is_current(self) -> bool:
        """Whether its file is still the one that it was read of."""
        return self.identity == _identity(self)

    @property
    def adapter_config(self) -> str | None:
        """Where PEFT's settings of its file are, if there are some; None where what lies beside it need not be its."""
        return remote_config(self.location) if self.is_remote else local_config(Path(self.location))


class Catalogue:
    """The LoRAs of one server, by name; what the operator adds, edits or removes shows at the next lookup.

    Invariant: `_entries` is what the directory and the index last held in a readable state; it is replaced as a whole.
    """

    def __init__(self, directory: Path | None) -> None:
        """Reads the catalogue.

        Args:
            directory: The operator's directory; None for a server without LoRAs.

        Raises:
            CatalogueError: If the directory is none, or its `catalogue.json` is not what it should be.
        """
        self._directory = None if directory is None else directory.resolve()
        self._entries: dict[str, CatalogueEntry] = {}
        self._warned: set[str] = set()
        self._profiles = None if self._directory is None else Profiles(self._directory, self._warn_once)
        self._signature: Signature = ()
        self._settled = True
        if self._directory is not None:
            if not self._directory.is_dir():
                raise CatalogueError(f"the LoRA catalogue {directory} is not a directory")
            self._rescan(self._directory, self._current_signature(self._directory))

    def names(self) -> list[str]:
        """All names, sorted."""
        self._refresh()
        return sorted(self._entries)

    def all_defaults(self) -> dict[str, LoraDefaults]:
        """What requests default to that name a LoRA, for every one."""
        self._refresh()
        return {name: entry.defaults for name, entry in self._entries.items()}

    def entry(self, name: str) -> CatalogueEntry:
        """The LoRA of that name.

        Raises:
            UnknownLoraError: If there is none; the message has the nearest names.
        """
        self._refresh()
        entries = self._entries
        found = entries.get(unicodedata.normalize("NFC", name))
        if found is None:
            raise UnknownLoraError(f"LORAS names {shown(name)}; allowed: {_allowed(name, list(entries))}")
        return replace(found, identity=_identity(found))

    def bound(self, name: str, steps: int) -> int | None:
        """The default bound of a LoRA in a run of so many steps; None for the server's.

        It is the index's, else the profile's, which is scaled and rounded down. The first time, that may take as long
        as reading the LoRA's file.

        Raises:
            UnknownLoraError: If there is no LoRA of that name.
        """
        entry = self.entry(name)
        if entry.bound is not None or self._profiles is None:
            return entry.bound
        profile = self._profiles.of(entry.name, None if entry.is_remote else Path(entry.location), entry.sha256)
        if profile.bound is None or profile.steps is None:
            return profile.bound
        return profile.bound * steps // profile.steps

    def defaults(self, name: str) -> LoraDefaults:
        """What requests default to that name a LoRA.

        Raises:
            UnknownLoraError: If there is no LoRA of that name.
        """
        return self.entry(name).defaults

    def _refresh(self) -> None:
        if self._directory is None:
            return
        signature = self._current_signature(self._directory)
        if signature == self._signature and self._settled:
            return
        try:
            self._rescan(self._directory, signature)
        except (CatalogueError, OSError) as error:
            self._signature, self._settled = signature, True
            logger.error("the LoRA catalogue stays as it was: %s", as_text(str(error)))

    def _current_signature(self, directory: Path) -> Signature:
        return signature_of(directory) + signature_of(directory / INDEX)

    def _rescan(self, directory: Path, signature: Signature) -> None:
        """Reads directory and index; `signature` is from before, so that a change meanwhile is seen next time."""
        newest = max((signature[1:2] + signature[4:5]), default=0)
        settled = abs(time.time_ns() - newest) > SETTLED_AFTER_NS
        entries = {name: str(path) for name, path in self._files(directory).items()}
        annotations = {name: Annotation() for name in entries} | read_index(directory / INDEX)
        found: dict[str, CatalogueEntry] = {}
        for name, annotation in annotations.items():
            location = entries.get(name) if annotation.location is None else _resolve(annotation.location, directory)
            if location is None:
                self._warn_once(f"{directory / INDEX} describes {name!r}, of which there is no file {name}{SUFFIX}")
                continue
            found[name] = CatalogueEntry(
                name,
                location,
                annotation.sha256,
                annotation.bound,
                annotation.alpha,
                annotation.defaults,
                identity="",
            )
        self._entries, self._signature, self._settled = found, signature, settled

    def _files(self, directory: Path) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for found in os.scandir(directory):
            if not found.name.endswith(SUFFIX):
                continue
            path = directory / found.name
            try:
                name = lora_name(os.fsencode(found.name).decode("utf-8").removesuffix(SUFFIX))
            except ValueError as error:
                self._warn_once(f"{path} is left out: {error}")
                continue
            if name in files:
                self._warn_once(f"{path} is left out: another file has the same name, written otherwise")
            elif found.is_symlink() and not path.resolve().is_relative_to(directory):
                self._warn_once(f"{path} is left out: it links to a place outside its directory")
            elif not found.is_file():
                self._warn_once(f"{path} is left out: it is not a file")
            else:
                files[name] = path
        return files

    def _warn_once(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            logger.warning("%s", as_text(sentence))


def is_remote(location: str) -> bool:
    """Whether a location is a URL rather than a path."""
    return "://" in location


def _resolve(location: str, directory: Path) -> str:
    """An absolute path, or the URL itself; of a directory, the file that PEFT writes into it."""
    if is_remote(location):
        return f"{location}{PEFT_FILE}" if location.endswith("/") else location
    path = directory / as_path(location)
    return str(path / PEFT_FILE if path.is_dir() else path)


def _identity(entry: CatalogueEntry) -> str:
    parts = [as_text(entry.location), entry.sha256 or "", ""]
    if not entry.is_remote:
        config = entry.adapter_config
        beside = ("not its",) if config is None else signature_of(Path(config))
        parts[-1] = ",".join(str(part) for part in (*signature_of(Path(entry.location)), *beside))
    return "|".join(parts if entry.alpha is None else [*parts, f"alpha {entry.alpha!r}"])


def _allowed(name: str, names: list[str]) -> str:
    if not names:
        return "this server has no LoRAs"
    by_lower_case = {known.lower(): known for known in sorted(names)}
    wanted = name[:128].lower()
    pairs = set(pairwise(wanted))  # of neighbouring letters: how many two names share is a quick measure of likeness
    candidates = heapq.nlargest(COMPARED, by_lower_case, key=lambda known: len(pairs.intersection(pairwise(known))))
    near = difflib.get_close_matches(wanted, candidates, n=3, cutoff=0.6)
    if near:
        return f"names of the catalogue, the nearest: {', '.join(by_lower_case[each] for each in near)}"
    some = sorted(names)[:3]
    return f"names of the catalogue, among them: {', '.join(some)}"
