"""What the tokens outside a mask become in a step that does not compute them: a line through steps that did.

O(s) = O(s0) + (s - s0) / (s0 - s1) · (O(s0) - O(s1)), for the last two steps s1 < s0 of the run that computed all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence


class TokenLine:
    """One half of a run's.

    Attributes:
        error: How far the line was from the last step that computed all: the norm of the difference over the norm, of
            unmasked tokens; None before there was a line.
    """

    def __init__(self) -> None:
        self.error: torch.Tensor | None = None
        self._company: Hashable = None
        self._step = -1
        self._last: Sequence[torch.Tensor] = ()
        self._slope: Sequence[torch.Tensor] = ()

    @property
    def nbytes(self) -> int:
        """What it holds."""
        return sum(each.nbytes for each in (*self._last, *self._slope))

    def reaches(self, company: Hashable) -> bool:
        """Whether there is a line, of steps with this company: what is in the weights, and which ControlNets."""
        return bool(self._slope) and company == self._company

    def forget(self) -> None:
        """All it knows."""
        self._last, self._slope, self._company, self._step = (), (), None, -1

    @torch.inference_mode()
    def keep(
        self, step: int, values: Sequence[torch.Tensor], company: Hashable, outside: Sequence[torch.Tensor]
    ) -> None:
        """What a step gave that computed all.

        Args:
            step: Its number.
            values: By block, [tokens, width]; kept.
            company: Another one ends the line.
            outside: By block, [tokens, 1]: 1 for unmasked tokens, else 0.
        """
        if company != self._company:
            self.forget()
        if step == self._step:  # taken again, since the other half failed: the same values
            return
        if self._slope:
            self.error = self._distance(step, values, outside)
        if self._last:
            far = step - self._step
            self._slope = [last.neg_().add_(new).div_(far) for last, new in zip(self._last, values, strict=True)]
        self._last, self._step, self._company = values, step, company

    def at(self, step: int, number: int, out: torch.Tensor) -> None:
        """A block's tokens [tokens, width] in a step, by the line."""
        torch.add(self._last[number], self._slope[number], alpha=step - self._step, out=out)

    def _distance(self, step: int, values: Sequence[torch.Tensor], outside: Sequence[torch.Tensor]) -> torch.Tensor:
        apart, whole = values[0].new_zeros((), dtype=torch.float32), values[0].new_zeros((), dtype=torch.float32)
        for number, (value, where) in enumerate(zip(values, outside, strict=True)):
            line = torch.empty_like(value)
            self.at(step, number, line)
            apart += ((line.float() - value) * where).square().sum()
            whole += (value.float() * where).square().sum()
        return (apart / whole).sqrt()
