"""What a mask-aware run computed, as INFO's `editing` tells it."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ..networks.token_masks import TokenMask
    from .token_rows import TokenRow


class TokenReport:
    """What is noted of one run.

    Attributes:
        hits: Halves of steps that went by an entry.
        missed: Steps and halves that were to, and found none.
    """

    def __init__(self, mask: TokenMask, levels: Sequence[int]) -> None:
        """Nothing yet.

        Args:
            mask: The run's.
            levels: `TokenStacks.levels`.
        """
        self.hits = 0
        self.missed: set[tuple[int, int]] = set()
        self._mask, self._levels = mask, levels
        self._exact: set[int] = set()
        self._lacked: dict[tuple[int, int], frozenset[int]] = {}
        self._lines: set[tuple[str, bool]] = set()
        self._errors: list[torch.Tensor] = []

    def note_exact(self, step: int) -> None:
        """A half of a step computes all."""
        self._exact.add(step)

    def note_masked(self, row: TokenRow) -> None:
        """A half of a step computed masked tokens alone, but in blocks where all were computed sooner."""
        assert row.line is not None
        if len(lacked := row.lacks) == len(self._levels):
            return
        self.hits += row.line.source == "template" and (row.step, row.half) not in self._lacked
        self._lacked[row.step, row.half] = lacked
        self._lines.add((row.line.source, row.line.same_prompt))

    def note_error(self, error: torch.Tensor | None) -> None:
        """Of a line in a step that computed all; None where it said nothing of it."""
        if error is not None:
            self._errors.append(error)

    def to_json(self, steps: int, halves: int, why: str) -> dict[str, Any]:
        """INFO's `editing`.

        Args:
            steps: That were taken.
            halves: Of the guidance, that each evaluated.
            why: Nothing was left out, if that is so.
        """
        share = {"mask": round(self._mask.area, 4)}
        if not self._lacked:
            return {"mode": "exact", **share, "why": why}
        sources, of_prompt = ({*each} for each in zip(*self._lines, strict=True))
        known = {"same_prompt": all(of_prompt), "misses": len({step for step, _ in self.missed})}
        masked = {step for step, _ in self._lacked}
        blocks = [len(self._levels) - len(lacked) for lacked in self._lacked.values()]
        return {
            "mode": "tokens",
            "source": "mixed" if len(sources) > 1 else min(sources),
            **share,
            "tokens": [round(len(self._mask.places[h, w]) / (h * w), 4) for h, w in self._mask.sides],
            "exact_steps": [step for step in range(steps) if step not in masked or step in self._exact],
            "computed": round(1 - self._left_out() / (steps * halves), 4),
            "blocks_cached": {"mean": round(mean(blocks), 1), "of": len(self._levels)},
            **({"cache_error": round(max(map(float, self._errors)), 4)} if self._errors else {}),
            **(known if "template" in sources else {}),
        }

    def _left_out(self) -> float:
        """Of all blocks' tokens in one half of a step, how many times so many were left out."""
        sides = [self._mask.sides[level] for level in self._levels]
        outside = [height * width - len(self._mask.places[height, width]) for height, width in sides]
        left_out = sum(sum(outside) - sum(outside[number] for number in lacked) for lacked in self._lacked.values())
        return left_out / sum(height * width for height, width in sides)
