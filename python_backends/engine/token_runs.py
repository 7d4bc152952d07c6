"""Mask-aware runs: in most steps masked tokens alone are computed, what the others become lies on a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..networks.token_masks import token_mask
from ..request.mask_aware import LEAST_STEPS, MOST_AREA
from .token_lines import TokenLine

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from ..networks.token_masks import TokenMask
    from ..request.completed import CompletedRequest
    from ..request.mask_aware import MaskAware
    from .starts import Start

HALVES = 2
SETS = 2
"""Of its blocks' tokens that a half keeps: the last step's, and what they change by."""


class TokenRuns:
    """Makes those of one shard, which share its room.

    Attributes:
        memory: What they may keep.
    """

    def __init__(self, levels: Sequence[int] | None, most_bytes: int) -> None:
        """None yet.

        Args:
            levels: `TokenStacks.levels`; None for a runtime that masks nothing.
            most_bytes: That they may keep.
        """
        self._levels, self.memory = levels, TokenMemory(most_bytes)

    def make(self, request: CompletedRequest, start: Start, steps: int) -> TokenRun | None:
        """That of a request with so many steps; None for one that is not mask-aware."""
        if request.edit is None or request.edit.mask_aware is None or start.mask is None:
            return None
        levels = 1 + max(self._levels or (0,))
        mask = token_mask(start.mask[0, 0], levels)
        return TokenRun(mask, request.edit.mask_aware, steps, self.memory, self._levels)


class TokenMemory:
    """What all runs of a shard may keep of their blocks' tokens.

    Attributes:
        free: Bytes.
    """

    def __init__(self, most_bytes: int) -> None:
        """Nothing is taken yet."""
        self.free = most_bytes

    def take(self, nbytes: int) -> bool:
        """Whether there was room; it is taken then."""
        if nbytes > self.free:
            return False
        self.free -= nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        """What was taken."""
        self.free += nbytes


@dataclass(frozen=True)
class TokenRow:
    """A row of a call: one half of a mask-aware run in one step.

    Attributes:
        run: Whose.
        half: Of its guidance.
        step: The run's.
        company: What else the blocks depend on: LoRAs, ControlNets.
        mask: What is computed; None for all, which the run keeps.
    """

    run: TokenRun
    half: int
    step: int
    company: Hashable
    mask: TokenMask | None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows that agree in these share calls; all tokens have none."""
        return () if self.mask is None else self.mask.sizes

    def keep(self, values: Sequence[torch.Tensor]) -> None:
        """What its blocks gave, [tokens, width] each."""
        self.run.keep(self, values)

    def known(self, number: int, out: torch.Tensor) -> None:
        """What a block gives for all tokens [tokens, width], as far as it is known."""
        self.run.lines[self.half].at(self.step, number, out)


class TokenRun:
    """What one mask-aware run keeps, and when it computes all.

    Attributes:
        lines: Of each half.
    """

    def __init__(
        self, mask: TokenMask, asked: MaskAware, steps: int, memory: TokenMemory, levels: Sequence[int] | None
    ) -> None:
        """Keeps nothing yet.

        Args:
            mask: Its tokens.
            asked: In which steps all are computed.
            steps: Of the run.
            memory: Of the shard.
            levels: `TokenStacks.levels`; None for a runtime that masks nothing.
        """
        self.lines = tuple(TokenLine() for _ in range(HALVES))
        self._mask, self._exact, self._memory = mask, frozenset((0, *asked.exact_steps)), memory
        self._last_masked = max((step for step in range(steps) if step not in self._exact), default=-1)
        self._levels, self._taken = levels or (), 0
        self._outside: list[torch.Tensor] = []
        self._all: set[int] = set()
        self._masked: set[int] = set()
        self._errors: list[torch.Tensor] = []
        self._why_exact = self._reason(mask, asked, steps) if levels else "the runtime computes all"

    @staticmethod
    def _reason(mask: TokenMask, asked: MaskAware, steps: int) -> str | None:
        if mask.area > MOST_AREA or mask.is_full:
            return f"{mask.area:.2f} of the picture are masked; up to {MOST_AREA:g} something is saved"
        if asked.source == "auto" and steps < LEAST_STEPS:
            return f"{steps} steps are too few; {LEAST_STEPS} are enough"
        return None

    def row(self, step: int, half: int, company: Hashable) -> TokenRow | None:
        """That of a step's call; None where all is computed and nothing of it is wanted."""
        if self._why_exact is not None:
            return None
        if step not in self._exact and self.lines[half].reaches(company):
            return TokenRow(self, half, step, company, self._mask)
        self._all.add(step)
        return TokenRow(self, half, step, company, None) if step < self._last_masked else None

    @property
    def computes_all(self) -> bool:
        """Whether no step will leave anything out."""
        return self._why_exact is not None

    def note_masked(self, step: int) -> None:
        """A half of a step computed masked tokens alone."""
        self._masked.add(step)

    def keep(self, row: TokenRow, values: Sequence[torch.Tensor]) -> None:
        """What a row's blocks gave."""
        if self._why_exact is not None:  # since a row of the same call
            return
        nbytes = SETS * sum(each.nbytes for each in values)
        line = self.lines[row.half]
        if not line.nbytes:
            if not self._memory.take(nbytes):
                self.close()
                self._why_exact = "the shard has no room for its tokens"
                return
            self._taken += nbytes
        line.keep(row.step, values, row.company, self._unmasked(values))
        if line.error is not None:
            self._errors.append(line.error)

    def close(self) -> None:
        """It has ended."""
        for line in self.lines:
            line.forget()
        self._memory.give_back(self._taken)
        self._taken, self._outside = 0, []

    def report(self, steps: int) -> dict[str, Any]:
        """INFO's `editing`."""
        if not self._masked:
            why = self._why_exact or "no step was left for it"
            return {"mode": "exact", "mask": round(self._mask.area, 4), "why": why}
        return {
            "mode": "tokens",
            "source": "own",
            "mask": round(self._mask.area, 4),
            "tokens": [round(len(places) / (h * w), 4) for (h, w), places in self._mask.places.items()],
            "exact_steps": [step for step in range(steps) if step not in self._masked or step in self._all],
            **({"cache_error": round(max(map(float, self._errors)), 4)} if self._errors else {}),
        }

    def _unmasked(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """By block, [tokens, 1]: 1 outside the mask, else 0."""
        if not self._outside:
            levels = []
            for (height, width), places in self._mask.places.items():
                outside = values[0].new_ones(height * width, 1)
                outside[places.to(outside.device)] = 0
                levels.append(outside)
            self._outside = levels
        return [self._outside[level] for level in self._levels]
