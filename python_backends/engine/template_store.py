"""What blocks gave for known pictures, for any request that edits one of these again: files of all shards of a server.

A *template* is a picture that requests edit. An *entry* is one half of guidance at one timestep, as an exact step left
it; entries of one prompt and mask, and of what else blocks depend on, are a *track*. A picture that mask-aware requests
came with once is worth the writing: from the second on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from ..networks.token_codes import CodesFile, write_codes
from ..shared_memory.host_cache import EvictedError, HostCache, HostCacheFullError, Lease

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from ..lora.files.lora_set import LoraSet
    from ..request.completed import ControlNetUse

DIGITS, OF_A_NAME = 32, 16
"""Hexadecimal ones, of a slot's digest, and of a prompt's and a mask's."""

PARTS = 100
"""Of a timestep that entries tell apart."""

SEEN, SEEN_BYTES, PAGE = "seen", 2**24, bytes(4096)
"""Pictures that were seen: a page for each, the least a file takes, and most bytes of all."""


@dataclass(frozen=True)
class Company:
    """What blocks depend on beside latents, picture and timestep, in one half of guidance.

    Attributes:
        loras: In the weights, or beside them.
        controls: ControlNets that contribute.
        prompt: Digest of what the half is conditioned on.
    """

    loras: LoraSet
    controls: tuple[ControlNetUse, ...]
    prompt: str


@dataclass(frozen=True)
class Place:
    """Where a request looks for entries, and leaves some.

    Attributes:
        network: Digest of the UNet's weights.
        template: Key of the picture.
        kind: Of the half: entries of another one are of no use.
        server: Names the one whose ControlNets contribute, of which nothing more is known here than what it calls them.
    """

    network: str
    template: str
    kind: str
    server: str = ""

    def slot(self, company: Company) -> str:
        """The name that its entries begin with."""
        own = [self.network, self.template, self.kind, self.server if company.controls else ""]
        told = [*own, company.loras, [asdict(use) for use in company.controls]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:DIGITS]


@dataclass
class Track:
    """Entries that differ in their timestep alone.

    Attributes:
        prompt: Digest of what they were conditioned on.
        mask: Digest of their mask.
        files: By timestep.
    """

    prompt: str
    mask: str
    files: dict[float, Path] = field(default_factory=dict)

    def nearest(self, timestep: float, reach: float) -> float | None:
        """Timestep of the entry that serves another one; None if none is so near."""
        found = min(self.files, key=lambda each: abs(each - timestep), default=None)
        return None if found is None or abs(found - timestep) > reach else found


class TemplateStore:
    """Entries by name, the least recently used of which go first."""

    def __init__(self, tiers: tuple[HostCache, ...], seen_bytes: int = SEEN_BYTES) -> None:
        """Opens them.

        Args:
            tiers: The fastest first, at least one; entries are written into all.
            seen_bytes: Most that is taken to know which pictures were seen.
        """
        self._tiers = tiers
        self._seen = HostCache(tiers[0].directory / SEEN, seen_bytes, wait_s=0.0)
        self._masks: dict[str, torch.Tensor] = {}

    def see(self, template: str) -> bool:
        """Notes that a mask-aware request came with a picture; whether one had before."""
        if self.was_seen(template):
            return True
        with suppress(HostCacheFullError), self._seen.reserve(len(PAGE)) as reservation:
            reservation.path.write_bytes(PAGE)
            reservation.publish(template)
        return False

    def was_seen(self, template: str) -> bool:
        """Whether a mask-aware request came with a picture."""
        return self._seen.find(template) is not None

    def is_near(self, path: Path) -> bool:
        """Whether an entry lies in the fastest tier."""
        return path.parent == self._tiers[0].directory

    def bring_near(self, path: Path) -> None:
        """Copies an entry of a slower tier into the fastest."""
        if not self.is_near(path) and self._tiers[0].find(path.stem) is None:
            nearest = self._tiers[0]
            with (
                suppress(HostCacheFullError, EvictedError),
                Lease(path),
                nearest.reserve(path.stat().st_size) as reservation,
            ):
                shutil.copyfile(path, reservation.path)
                reservation.publish(path.stem)

    def tracks(self, slot: str) -> list[Track]:
        """What there is at a slot."""
        found: dict[tuple[str, str], Track] = {}
        for tier in reversed(self._tiers):
            for path in tier.directory.glob(f"{slot}-*.safetensors"):
                _, prompt, mask, timestep = path.stem.split("-")
                track = found.setdefault((prompt, mask), Track(prompt, mask))
                track.files[int(timestep) / PARTS] = path
        return list(found.values())

    def mask(self, track: Track) -> torch.Tensor | None:
        """[h, w]: where a track's entries are of something else than the template; None if they have gone."""
        if track.mask not in self._masks:
            entries = (self.open(path) for path in track.files.values())
            entry = next((entry for entry in entries if entry is not None), None)
            if entry is None:
                return None
            self._masks[track.mask] = entry.mask()
        return self._masks[track.mask]

    @staticmethod
    def open(path: Path) -> CodesFile | None:
        """An entry, which counts as just used; None if it has gone, or is none."""
        try:
            with Lease(path):
                return CodesFile(path)
        except (EvictedError, OSError, ValueError):
            return None

    def write(self, name: str, values: Sequence[torch.Tensor], mask: torch.Tensor) -> int:
        """Keeps an entry, where there is none of its name and room for it.

        Args:
            name: Of a track, and a timestep.
            values: By block, [tokens, width].
            mask: [h, w]: where they are of something else than the template.

        Returns:
            Bytes written.
        """
        written, source = 0, None
        for tier in self._tiers:
            if (there := tier.find(name)) is not None:
                source = source or there
                continue
            with suppress(HostCacheFullError), tier.reserve(sum(each.numel() for each in values)) as reservation:
                if source is None:
                    write_codes(values, mask, reservation.path)
                else:
                    shutil.copyfile(source, reservation.path)
                written += reservation.path.stat().st_size
                source = reservation.publish(name)
        return written
