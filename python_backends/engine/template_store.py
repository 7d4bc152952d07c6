"""What blocks gave for known pictures, for any request that edits one of these again: files of all shards of a server.

A *template* is a picture that requests edit. An *entry* is one half of guidance at one timestep, as an exact step left
it; entries of one prompt and mask, and of what else blocks depend on, are a *track*. A picture that mask-aware requests
came with once is worth the writing: from the second on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import OrderedDict
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from ..networks.token_codes import CodesFile, coded, write_codes
from ..shared_memory.host_cache import EvictedError, HostCache, HostCacheFullError, Lease
from .template_listing import DIGITS, Listing

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    import torch

    from ..lora.files.lora_set import LoraSet
    from ..request.completed import ControlNetUse

logger = logging.getLogger(__name__)

MASKS = 64
"""That are remembered, of entries."""

ENTRIES = 1
"""Another number where entries mean something else, or blocks give something else than before."""

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
        slot: Where they are.
    """

    prompt: str
    mask: str
    files: dict[float, Path] = field(default_factory=dict)
    slot: str = ""

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
        self._listings = [Listing(tier.directory) for tier in reversed(tiers)]
        self._masks: OrderedDict[str, torch.Tensor] = OrderedDict()

    @property
    def room(self) -> int:
        """Bytes of entries that stay, if no others come."""
        return max(tier.max_bytes for tier in self._tiers)

    def see(self, template: str) -> bool:
        """Notes that a mask-aware request came with a picture; whether one had before."""
        if self.was_seen(template):
            return True
        with suppress(HostCacheFullError, OSError), self._seen.reserve(len(PAGE)) as reservation:
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
                suppress(HostCacheFullError, EvictedError, OSError),
                Lease(path),
                nearest.reserve(path.stat().st_size) as reservation,
            ):
                shutil.copyfile(path, reservation.path)
                reservation.publish(path.stem)

    def tracks(self, slot: str) -> list[Track]:
        """What there is at a slot."""
        found: dict[tuple[str, str], Track] = {}
        for listing in self._listings:  # of the slowest tier first
            for path, prompt, mask, timestep in listing.of(slot):
                found.setdefault((prompt, mask), Track(prompt, mask, slot=slot)).files[timestep] = path
        return list(found.values())

    def look_again(self, track: Track, but: Collection[str]) -> None:
        """Adds what has come to a track meanwhile, but for entries of these names."""
        for each in self.tracks(track.slot):
            if (each.prompt, each.mask) == (track.prompt, track.mask):
                track.files |= {timestep: path for timestep, path in each.files.items() if path.stem not in but}

    def mask(self, track: Track) -> torch.Tensor | None:
        """[h, w]: where a track's entries are of something else than the template; None if they have gone."""
        mask = self._masks.pop(track.mask, None)
        if mask is None:
            while track.files and mask is None:
                timestep, path = next(iter(track.files.items()))
                if (entry := self.open(path)) is None:
                    del track.files[timestep]
                else:
                    mask = entry.mask
            if mask is None:
                return None
        self._masks[track.mask] = mask
        while len(self._masks) > MASKS:
            self._masks.popitem(last=False)
        return mask

    @staticmethod
    def open(path: Path) -> CodesFile | None:
        """An entry, which counts as just used; None if it has gone, or is none, and then goes."""
        try:
            with Lease(path):
                return CodesFile(path)
        except (EvictedError, OSError):
            return None
        except ValueError:
            TemplateStore.discard(path)
            return None

    @staticmethod
    def discard(path: Path) -> None:
        """What is no entry, or cannot be read, makes room for one."""
        with suppress(OSError):
            path.unlink(missing_ok=True)

    def write(self, name: str, values: Sequence[torch.Tensor], mask: torch.Tensor, near: bool = False) -> int | None:
        """Keeps an entry, where there is none of its name and room for it.

        Args:
            name: Of a track, and a timestep.
            values: By block, [tokens, width].
            mask: [h, w]: where they are of something else than the template.
            near: Whether it is for the fastest tier alone.

        Returns:
            Bytes written; None if it was there.
        """
        tiers = self._tiers[:1] if near else self._tiers
        lacking = [tier for tier in tiers if tier.find(name) is None]
        if not lacking:
            return None
        written, tensors = 0, coded(values, mask)
        for tier in lacking:
            try:
                with tier.reserve(sum(each.nbytes for each in tensors.values())) as reservation:
                    write_codes(name, tensors, reservation.path)
                    if tier is not self._tiers[0]:
                        _sync(reservation.path)
                    written += reservation.path.stat().st_size
                    reservation.publish(name)
            except HostCacheFullError:
                continue
            except OSError as error:
                logger.warning("an entry of a picture is not kept in %s: %s", tier.directory, error)
        return written


def _sync(path: Path) -> None:
    """What is written is there after a crash too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
