"""What a row of a shard's calls costs beside others: one that leaves tokens out is worth a part of a whole one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..networks.token_costs import Features
from .call_costs import CallCosts
from .placement import cells

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ..networks.token_costs import TokenCosts
    from .run import Denoising
    from .token_runs import TokenRow


class RowCosts:
    """Those of one shard, learnt from its calls.

    Attributes:
        calls: What these take.
    """

    def __init__(self, tokens: TokenCosts | None) -> None:
        """Nothing was called yet.

        Args:
            tokens: Of the UNet; None where no call leaves tokens out.
        """
        self._tokens = tokens
        self.calls = CallCosts(1.0 if tokens is None else tokens.convolutions)

    def __call__(self, run: Denoising, half: int) -> float:
        """Of a half in the current step, as `place` takes it: latent cells, or less in proportion."""
        whole, row = cells(run, half), run.tokens(half)
        if self._tokens is None or row is None or not row.sizes:
            return whole
        height, width = run.latents.shape[2:]
        constant = self.calls.coefficients[0]
        masked = self.calls.expected(self._tokens.row(height, width, row.sizes)) - constant
        return whole * masked / (self.calls.expected(self._tokens.row(height, width)) - constant)

    def features(self, latents: torch.Tensor, tokens: Sequence[TokenRow | None] = ()) -> Features | None:
        """Of a call's rows together; None where no call leaves tokens out.

        Args:
            latents: [B, C, h, w].
            tokens: Of each row what is masked; empty for nothing.
        """
        if self._tokens is None:
            return None
        height, width = latents.shape[2:]
        sizes = [None if row is None else row.sizes or None for row in tokens or (None,) * len(latents)]
        return sum((self._tokens.row(height, width, each) for each in sizes), Features())

    def note(self, features: Features | None, seconds: float) -> None:
        """A call took so long."""
        if features is not None:
            self.calls.note(features, seconds)
