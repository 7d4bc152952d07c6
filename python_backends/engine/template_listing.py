"""Names of entries, and which there are in a directory. Needs no torch."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

DIGITS, OF_A_NAME = 32, 16
"""Hexadecimal ones, of a slot's digest, and of a prompt's and a mask's."""

PATTERN = re.compile(rf"[0-9a-f]{{{DIGITS}}}-([0-9a-f]{{{OF_A_NAME}}})-([0-9a-f]{{{OF_A_NAME}}})-([0-9]{{1,9}})")

TIMESTEP_PARTS = 100
"""Of a timestep that entries tell apart."""

COARSE_NS = 100_000_000
"""Changes of a directory that lie no further apart may look like one."""


class Listing:
    """The entries of a directory, looked at again when it has changed."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._changed = directory, -1
        self._slots: dict[str, list[tuple[Path, str, str, float]]] = {}

    def of(self, slot: str) -> list[tuple[Path, str, str, float]]:
        """Path, prompt, mask and timestep of each."""
        try:
            changed = self._directory.stat().st_mtime_ns
        except OSError:
            return []
        if changed != self._changed:
            self._changed = changed if time.time_ns() - changed > COARSE_NS else -1
            self._slots = {}
            for path in self._directory.glob("*.safetensors"):
                if (name := PATTERN.fullmatch(path.stem)) is not None:
                    prompt, mask, timestep = name.groups()
                    self._slots.setdefault(path.stem[:DIGITS], []).append(
                        (path, prompt, mask, int(timestep) / TIMESTEP_PARTS)
                    )
        return self._slots.get(slot, [])
