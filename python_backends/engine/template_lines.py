"""What the tokens outside a mask become by what is known of the picture: an entry, and how far the run was from one.

T(s) + (O(s0) - T(s0)), for the last step s0 of the run that computed all and had an entry T(s0); before that T(s).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..common.errors import EntryLostError
from ..networks.token_codes import SCALE_BYTES
from .token_lines import Coming, distance

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from .entry_loads import Entry, EntryLoads
    from .template_store import Track
    from .token_lines import Source


class TemplateLine:
    """Goes by a track: see `Line`.

    Attributes:
        track: Its entries.
        same_prompt: Whether these were made with the run's prompt.
    """

    source: Source = "template"
    sets = 1

    def __init__(
        self,
        track: Track,
        timesteps: Sequence[float],
        reach: float,
        shapes: Sequence[tuple[int, int]],
        loads: EntryLoads,
        *,
        same_prompt: bool,
        look_again: Callable[[], None] = lambda: None,
    ) -> None:
        """Reads nothing yet.

        Args:
            track: Its entries.
            timesteps: Of the run's steps.
            reach: How far an entry's timestep may be from a step's.
            shapes: By block, (tokens, width).
            loads: Brings entries to where the UNet is.
            same_prompt: Whether the track is of the run's prompt.
            look_again: Adds to the track what has come to it: the request before this one may still leave some.
        """
        self.same_prompt = same_prompt
        self.error: torch.Tensor | None = None
        self.track, self._timesteps, self._reach, self._shapes = track, timesteps, reach, shapes
        self._loads, self._look_again = loads, look_again
        self._entries: dict[int, Entry | None] = {}  # None for what could not be read
        self._lost: set[Path] = set()
        self._looked = -1
        self._corrected = -1
        self._correction: Sequence[torch.Tensor] = ()

    def reaches(self, step: int) -> bool:
        """Whether that is there, or comes."""
        return self._entry(step) is not None

    def lacks(self, step: int) -> Collection[int]:
        """Blocks of which it says nothing in a step, since they are computed sooner than they come."""
        entry = self._entry(step)
        return () if entry is None else frozenset(range(len(self._shapes))) - entry.numbers

    def comes(self, step: int) -> Coming | None:
        """What has to come for a step, and does not yet."""
        if step in self._entries or step >= len(self._timesteps):
            return None
        timestep = self._nearest(step)
        if timestep is None or self._loads.is_there(path := self.track.files[timestep]):
            return None
        blocks = tuple(tokens * (width + SCALE_BYTES) for tokens, width in self._shapes)
        return Coming(blocks, self._loads.pace(path), self._loads.pending)

    def look_ahead(self, step: int, wanted: Collection[int] | None = None) -> None:
        """Has a step's entry come; that of steps before the last one is given up."""
        if step < len(self._timesteps):
            self._entry(step, wanted)
        self._entries = {each: entry for each, entry in self._entries.items() if each >= step - 1}

    def lose(self, step: int) -> None:
        """A step's entry could not be read: it is one no more."""
        self._entries[step] = None
        timestep = self._nearest(step)
        if timestep is not None:
            self._lost.add(self.track.files.pop(timestep))

    def forget(self) -> None:
        """All it keeps."""
        self._correction, self._corrected = (), -1
        self._entries.clear()

    @torch.inference_mode()
    def compare(self, step: int, values: Sequence[torch.Tensor], outside: Sequence[torch.Tensor]) -> Entry | None:
        """Notes how far it was from what a step gave that computed all; its entry, None if that is not whole."""
        entry = self._entry(step)
        if entry is None or len(entry.numbers) < len(values):
            return None
        try:
            self.error = distance(lambda number, out: self.at(step, number, out), values, outside)
        except EntryLostError:
            self.lose(step)
            return None
        return entry

    @torch.inference_mode()
    def keep(self, step: int, values: Sequence[torch.Tensor], outside: Sequence[torch.Tensor]) -> None:
        """What a step gave that computed all."""
        if step == self._corrected or (entry := self.compare(step, values, outside)) is None:
            return
        correction = []
        try:
            for number, value in enumerate(values):
                known = torch.empty_like(value)
                entry.block(number).into(known)
                correction.append(torch.sub(value, known, out=known))
        except EntryLostError:
            self.lose(step)
        else:
            self._correction, self._corrected = correction, step

    def at(self, step: int, number: int, out: torch.Tensor) -> None:
        """A block's tokens [tokens, width] in a step, by its entry.

        Raises:
            EntryLostError: If that could not be read.
        """
        entry = self._entry(step)
        assert entry is not None, "a line says nothing of steps that it does not reach"
        entry.block(number).into(out)
        if self._correction:
            out += self._correction[number]

    def _entry(self, step: int, wanted: Collection[int] | None = None) -> Entry | None:
        if step in self._entries:
            return self._entries[step]
        if (timestep := self._nearest(step)) is None and step > self._looked:  # of each step once
            self._looked = step
            self._look_again()
            self.track.files = {each: path for each, path in self.track.files.items() if path not in self._lost}
            timestep = self._nearest(step)
        if timestep is None:
            return None
        entry = self._loads.begin(self.track.files[timestep], self._shapes, wanted)
        if entry is None:
            del self.track.files[timestep]
        else:
            self._entries[step] = entry
        return entry

    def _nearest(self, step: int) -> float | None:
        return self.track.nearest(self._timesteps[step], self._reach)
