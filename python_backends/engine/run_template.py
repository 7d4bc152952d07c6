"""One run and its template: which entries it goes by, and which it leaves for others."""

from __future__ import annotations

import math
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from ..networks.token_codes import SCALE_BYTES
from ..request.mask_aware import ENOUGH
from .template_lines import TemplateLine
from .template_listing import TIMESTEP_PARTS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import torch

    from ..networks.token_masks import TokenMask
    from .entry_loads import EntryLoads
    from .template_store import Company, Place, Track
    from .template_writer import TemplateWriter

MOST_MASKS = 32
"""Of entries that a run looks at, its own first."""


MOST_LINES = 4
"""Of other prompts, that a run tries."""


class _Rank(NamedTuple):
    is_enough: bool
    is_own: bool
    covered: int


class RunTemplate:
    """What is known of a run's picture, and what the run adds to it.

    Attributes:
        takes_turns: Whether entries of every second step of a half are enough for it.
    """

    def __init__(
        self,
        writer: TemplateWriter,
        loads: EntryLoads,
        places: Sequence[Place],
        mask: tuple[torch.Tensor, str, TokenMask],
        timesteps: Sequence[float],
        reach: float,
        shapes: Sequence[tuple[int, int]],
        value_bytes: int,
        *,
        writes: bool,
    ) -> None:
        """Has looked nowhere yet.

        Args:
            writer: Of the shard.
            loads: The shard's.
            places: Of each half.
            mask: [h, w], its digest, and its tokens.
            timesteps: Of the run's steps.
            reach: How far an entry's timestep may be from a step's.
            shapes: By block, (tokens, width).
            value_bytes: Of each value that a step gives.
            writes: Whether it leaves entries, where there is room.
        """
        halves = (_covered(timesteps, timesteps[turn::2], reach) for turn in range(2))
        self.takes_turns = min(halves) >= ENOUGH * len(timesteps)
        self._writer, self._loads, self._places = writer, loads, places
        self._mask, self._mask_name, self._tokens = mask
        self._timesteps, self._reach, self._shapes, self._value_bytes = timesteps, reach, shapes, value_bytes
        self._apart = self._spacing() if writes else None
        self._known: dict[tuple[int, Company], list[Track]] = {}
        self._serving: dict[tuple[int, Company], Track | None] = {}
        self._covered: dict[str, bool] = {}
        self._near: set[str] = set()
        self._left: set[str] = set()
        self._told = False

    def lines(self, half: int, company: Company, steps: range, *, any_: bool) -> list[TemplateLine]:
        """Those that a half may go by: one of its prompt, or some of others.

        Args:
            half: Of the guidance.
            company: What else its blocks depend on.
            steps: Those that will be in this company.
            any_: Whether a single entry is enough.
        """
        ranked = [
            (rank, track)
            for rank, track in self._ranked(half, company, steps)
            if rank.is_enough or (any_ and rank.covered)
        ]
        most = MOST_LINES if ranked and not ranked[0][0].is_own else 1
        given = self._timesteps, self._reach, self._shapes, self._loads
        return [
            TemplateLine(track, *given, same_prompt=rank.is_own, look_again=partial(self._look_again, track))
            for rank, track in ranked[:most]
        ]

    def _look_again(self, track: Track) -> None:
        """What others have left since; a run does not go by what it leaves itself, be it written soon or late."""
        self._writer.store.look_again(track, self._left)

    def serves(self, half: int, company: Company, step: int, steps: range) -> bool:
        """Whether a run like this one, with its prompts or others, finds an entry for a step, and enough of them.

        Args:
            half: Of the guidance.
            company: What else its blocks depend on.
            step: One of them.
            steps: Those in this company.
        """
        if (half, company) not in self._serving:
            rank, track = next(iter(self._ranked(half, company, steps)), (None, None))
            self._serving[half, company] = track if rank is not None and rank.is_enough else None
        found = self._serving[half, company]
        return found is not None and found.nearest(self._timesteps[step], self._reach) is not None

    def missing(self, half: int, company: Company, step: int) -> str | None:
        """Name of the entry that a step would be, if it should be one: none is near, and there is room."""
        apart = self._apart
        if apart is None:
            return None
        names, timestep = (company.prompt, self._mask_name), self._timesteps[step]
        for track in self._tracks(half, company):
            if (track.prompt, track.mask) == names and track.nearest(timestep, apart) is not None:
                return None
        beginning = "-".join((self._places[half].slot(company), *names))
        left = (float(each.rpartition("-")[2]) / TIMESTEP_PARTS for each in self._left if each.startswith(beginning))
        if any(abs(each - timestep) <= apart for each in left):
            return None
        if not self._writer.has_room(self._value_bytes * self._nbytes):
            self._writer.count("dropped", 1)
            return None
        name = f"{beginning}-{round(TIMESTEP_PARTS * timestep)}"
        if company.controls:  # of which other servers know nothing
            self._near.add(name)
        return name

    def tell(self, hits: int, misses: int) -> None:
        """Of how many steps a half went by an entry, and of how many one lacked it; once."""
        if self._told:
            return
        self._told = True
        for what, often in (("hit", hits), ("miss", misses)):
            if often:
                self._writer.count(what, often)

    def leave(self, name: str, values: Sequence[torch.Tensor]) -> None:
        """An entry."""
        if self._writer.put(name, values, self._mask, name in self._near):
            self._left.add(name)

    @property
    def _nbytes(self) -> int:
        """Of an entry, about."""
        return sum(tokens * (width + SCALE_BYTES) for tokens, width in self._shapes)

    def _spacing(self) -> float | None:
        """How far apart the entries are that it leaves: half of how far they may be, all of it, or None for no room."""
        room = self._writer.store.room // (len(self._places) * self._nbytes)
        for apart in (self._reach / 2, self._reach):
            needed, last = 0, math.inf
            for timestep in self._timesteps:
                if abs(last - timestep) > apart:
                    needed, last = needed + 1, timestep
            if needed <= room:
                return apart
        return None

    def _covers(self, track: Track) -> bool:
        """Whether all that a track's entries say nothing of lies within the run's mask."""
        if track.mask not in self._covered:
            mask = self._writer.store.mask(track) if len(self._covered) < MOST_MASKS else None
            self._covered[track.mask] = (
                mask is not None and mask.shape == self._mask.shape and self._tokens.covers(mask)
            )
        return self._covered[track.mask]

    def _tracks(self, half: int, company: Company) -> list[Track]:
        found = self._known.get((half, company))
        if found is None:
            found = self._writer.store.tracks(self._places[half].slot(company))
            found.sort(key=lambda track: (track.mask != self._mask_name, track.prompt != company.prompt))
            self._known[half, company] = found
        return found

    def _ranked(self, half: int, company: Company, steps: range) -> list[tuple[_Rank, Track]]:
        """Tracks that say something of a mask like the run's, by how many of the steps they serve; the best first."""
        left, ranked = self._timesteps[steps.start : steps.stop], []
        for track in self._tracks(half, company):
            if self._covers(track):
                covered = _covered(left, track.files, self._reach)
                ranked.append((_Rank(covered >= ENOUGH * len(left), track.prompt == company.prompt, covered), track))
        return sorted(ranked, key=itemgetter(0), reverse=True)


def _covered(timesteps: Sequence[float], entries: Collection[float], reach: float) -> int:
    """How many timesteps have an entry near enough."""
    return sum(any(abs(entry - timestep) <= reach for entry in entries) for timestep in timesteps)
