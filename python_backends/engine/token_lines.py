"""What the tokens outside a mask become in a step that does not compute them: a line through steps that did.

O(s) = O(s0) + (s - s0) / (s0 - s1) · (O(s0) - O(s1)), for the last two steps s1 < s0 of the run that computed all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

Source = Literal["template", "own"]


class Coming(NamedTuple):
    """What has to come to where a UNet computes.

    Attributes:
        blocks: Bytes of each.
        pace: Bytes a second.
        pending: Bytes that come before them.
    """

    blocks: tuple[int, ...]
    pace: float
    pending: int


class Line(Protocol):
    """What is known of one half of a run, as long as nothing but latents and timestep change.

    Attributes:
        source: What it goes by.
        sets: Of its blocks' tokens that it keeps, at most.
        same_prompt: Whether it comes of the run's own prompt.
        error: How far it was from the last step that computed all: the norm of the difference over the norm, of
            unmasked tokens; None before it said anything of such a step.
    """

    source: Source
    sets: int
    same_prompt: bool
    error: torch.Tensor | None

    def reaches(self, step: int) -> bool:
        """Whether it says anything of a step."""

    def lacks(self, step: int) -> Collection[int]:
        """Numbers of blocks of which it says nothing in a step that it reaches."""

    def comes(self, step: int) -> Coming | None:
        """What has to come for a step, and does not yet."""

    def look_ahead(self, step: int, wanted: Collection[int] | None = None) -> None:
        """The step before this one begins: of what has to come these blocks are to, or all."""

    def keep(self, step: int, values: Sequence[torch.Tensor], outside: Sequence[torch.Tensor]) -> None:
        """What a step gave that computed all.

        Args:
            step: Its number.
            values: By block, [tokens, width]; kept, and never changed.
            outside: By block, [tokens, 1]: 1 for unmasked tokens, else 0.
        """

    def at(self, step: int, number: int, out: torch.Tensor) -> None:
        """A block's tokens [tokens, width] in a step that it reaches.

        Raises:
            EntryLostError: If that could not be read.
        """

    def lose(self, step: int) -> None:
        """Says nothing of a step from now on."""

    def forget(self) -> None:
        """All it keeps."""


class TokenLine:
    """Goes by what the run's own exact steps gave: see `Line`."""

    source: Source = "own"
    sets = 2
    same_prompt = True

    def __init__(self) -> None:
        self.error: torch.Tensor | None = None
        self._step = -1
        self._last: Sequence[torch.Tensor] = ()
        self._slope: Sequence[torch.Tensor] = ()

    def reaches(self, _step: int) -> bool:
        """Whether there is a line."""
        return bool(self._slope)

    def lacks(self, _step: int) -> Collection[int]:
        """Nothing."""
        return ()

    def comes(self, _step: int) -> None:
        """Nothing."""

    def look_ahead(self, _step: int, _wanted: Collection[int] | None = None) -> None:
        """Changes nothing."""

    def lose(self, _step: int) -> None:
        """Loses nothing."""

    def forget(self) -> None:
        """All it knows."""
        self._last, self._slope, self._step = (), (), -1

    @torch.inference_mode()
    def keep(self, step: int, values: Sequence[torch.Tensor], outside: Sequence[torch.Tensor]) -> None:
        """What a step gave that computed all."""
        if step == self._step:  # taken again, since the other half failed: the same values
            return
        if self._slope:
            self.error = distance(lambda number, out: self.at(step, number, out), values, outside)
        if self._last:
            far = step - self._step
            self._slope = [(new - last).div_(far) for last, new in zip(self._last, values, strict=True)]
        self._last, self._step = values, step

    def at(self, step: int, number: int, out: torch.Tensor) -> None:
        """A block's tokens [tokens, width] in a step, by the line."""
        torch.add(self._last[number], self._slope[number], alpha=step - self._step, out=out)


def distance(
    at: Callable[[int, torch.Tensor], None], values: Sequence[torch.Tensor], outside: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The norm of a line's difference from what a step gave over the norm of that, of unmasked tokens."""
    apart, whole = values[0].new_zeros((), dtype=torch.float32), values[0].new_zeros((), dtype=torch.float32)
    for number, (value, where) in enumerate(zip(values, outside, strict=True)):
        line = torch.empty_like(value)
        at(number, line)
        apart += ((line.float() - value) * where).square().sum()
        whole += (value.float() * where).square().sum()
    return (apart / whole).sqrt()
