"""What is kept of the transformers of one half of a run in one step, or masked in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..common.errors import EntryLostError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import torch

    from ..networks.token_masks import TokenMask
    from .token_lines import Coming, Line, Source


class Masks(Protocol):
    """What a row asks of its run.

    Attributes:
        mask: Its tokens.
    """

    @property
    def mask(self) -> TokenMask: ...  # noqa: D102

    def is_exact(self, step: int, source: Source) -> bool:
        """Whether a step was asked to compute all."""

    def keep(self, row: TokenRow, values: Sequence[torch.Tensor]) -> None:
        """What a row's blocks gave."""

    def note_masked(self, row: TokenRow) -> None:
        """A half of a step computed masked tokens alone."""


@dataclass(frozen=True)
class TokenRow:
    """A row of a call.

    Attributes:
        run: Whose.
        half: Of its guidance.
        step: The run's.
        line: By which the half goes; None where nothing is left out.
        mask: What is computed; None for all, which is kept.
        name: Of the entry that it becomes; None for none.
    """

    run: Masks
    half: int
    step: int
    line: Line | None
    mask: TokenMask | None = None
    name: str | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows that agree in these share calls; all tokens have none."""
        return () if self.mask is None else self.mask.sizes

    def keep(self, values: Sequence[torch.Tensor]) -> None:
        """What its blocks gave, [tokens, width] each."""
        self.run.keep(self, values)

    @property
    def lacks(self) -> frozenset[int]:
        """Numbers of blocks that are computed for all tokens although others are not."""
        return frozenset() if self.line is None or self.mask is None else frozenset(self.line.lacks(self.step))

    @property
    def comes(self) -> Coming | None:
        """What has to come for its next step."""
        return None if self.line is None else self.line.comes(self.step + 1)

    def look_ahead(self, wanted: Collection[int] | None) -> None:
        """Its call begins: what the next step takes may come meanwhile, these blocks or all."""
        if self.line is not None:
            self.line.look_ahead(self.step + 1, None if self.run.is_exact(self.step + 1, self.line.source) else wanted)

    def known(self, number: int, out: torch.Tensor) -> None:
        """What a block gives for all tokens [tokens, width], as far as it is known.

        Raises:
            EntryLostError: If that could not be read; it is not known from then on.
        """
        assert self.line is not None, "rows without a line are not masked"
        try:
            self.line.at(self.step, number, out)
        except EntryLostError:
            self.line.lose(self.step)
            raise
