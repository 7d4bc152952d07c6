"""What the tokens outside a mask become by what is known of the picture: an entry, and how far the run was from one.

T(s) + (O(s0) - T(s0)), for the last step s0 of the run that computed all and had an entry T(s0); before that T(s).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .token_lines import distance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..networks.token_codes import Codes, CodesFile
    from .template_store import Track
    from .token_lines import Source

    Opens = Callable[[Path], CodesFile | None]


_NOTHING: Sequence[Codes] = ()


class TemplateLine:
    """Goes by a track: see `Line`."""

    source: Source = "template"
    sets = 1

    def __init__(
        self, track: Track, timesteps: Sequence[float], reach: float, shapes: Sequence[tuple[int, int]], open_: Opens
    ) -> None:
        """Reads nothing yet.

        Args:
            track: Its entries.
            timesteps: Of the run's steps.
            reach: How far an entry's timestep may be from a step's.
            shapes: By block, (tokens, width).
            open_: Opens an entry; None if it has gone.
        """
        self.error: torch.Tensor | None = None
        self.track, self._timesteps, self._reach, self._shapes = track, timesteps, reach, shapes
        self._open = open_
        self._step, self._entry = -1, _NOTHING
        self._corrected = -1
        self._correction: Sequence[torch.Tensor] = ()

    @property
    def nbytes(self) -> int:
        """What it holds."""
        return sum(each.nbytes for each in self._correction)

    def covers(self, step: int) -> bool:
        """Whether the track has an entry for a step."""
        return self.track.nearest(self._timesteps[step], self._reach) is not None

    def reaches(self, step: int) -> bool:
        """Whether that can be opened."""
        return bool(self._opened(step))

    def forget(self) -> None:
        """All it keeps."""
        self._correction, self._corrected, self._step, self._entry = (), -1, -1, _NOTHING

    @torch.inference_mode()
    def keep(self, step: int, values: Sequence[torch.Tensor], outside: Sequence[torch.Tensor]) -> None:
        """What a step gave that computed all."""
        if step == self._corrected or not self.reaches(step):
            return
        self.error = distance(lambda number, out: self.at(step, number, out), values, outside)
        correction = []
        for number, value in enumerate(values):
            known = torch.empty_like(value)
            self._codes(step, number, value.device).into(known)
            correction.append(torch.sub(value, known, out=known))
        self._correction, self._corrected = correction, step

    def at(self, step: int, number: int, out: torch.Tensor) -> None:
        """A block's tokens [tokens, width] in a step, by its entry."""
        self._codes(step, number, out.device).into(out)
        if self._correction:
            out += self._correction[number]

    def _codes(self, step: int, number: int, device: torch.device) -> Codes:
        return self._opened(step)[number].to(device)

    def _opened(self, step: int) -> Sequence[Codes]:
        """A step's entry, block by block; nothing if it has gone, or is of another network."""
        if step != self._step:
            timestep = self.track.nearest(self._timesteps[step], self._reach)
            entry = _NOTHING if timestep is None else self._read(timestep)
            if timestep is not None and not entry:
                del self.track.files[timestep]
            self._step, self._entry = step, entry
        return self._entry

    def _read(self, timestep: float) -> Sequence[Codes]:
        file = self._open(self.track.files[timestep])
        if file is None:
            return _NOTHING
        try:
            return [file.block(number, *shape) for number, shape in enumerate(self._shapes)]
        except ValueError:
            return _NOTHING
