"""What a row of a shard's calls costs beside others: one that leaves tokens out is worth a part of a whole one."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from ..networks.token_costs import Features
from ..networks.token_masks import sizes_of
from .call_costs import CallCosts, coarse
from .placement import cells
from .token_lines import TokenLine

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ..networks.token_costs import TokenCosts
    from .run import Denoising
    from .token_runs import TokenRow
    from .unet_calls import UNetCall
    from .work import Work

MODULES = Features(modules=1.0)
NOTHING: frozenset[int] = frozenset()


class RowCosts:
    """Those of one shard, learnt from its calls.

    Attributes:
        calls: What these take.
        is_wanted: Whether any call left tokens out, or kept them: before that nobody asks.
    """

    def __init__(self, tokens: TokenCosts | None, scale_factor: int = 1) -> None:
        """Nothing was called yet.

        Args:
            tokens: Of the UNet; None where no call leaves tokens out.
            scale_factor: Pixels per latent cell.
        """
        self._tokens, self._scale_factor = tokens, scale_factor
        self.calls = CallCosts(1.0 if tokens is None else tokens.convolutions)
        self.is_wanted = False

    def __call__(self, run: Denoising, half: int) -> float:
        """Of a half in the current step, as `place` takes it: latent cells, or less in proportion."""
        whole, row = cells(run, half), run.tokens(half)
        if self._tokens is None or row is None or not row.sizes:
            return whole
        height, width = run.latents.shape[2:]
        masked, all_ = self._tokens.row(height, width, row.sizes, lacks=row.lacks), self._tokens.row(height, width)
        return whole * min(1.0, self.calls.ratio(masked, all_))

    def work(self, call: UNetCall) -> int:
        """A call's, as `StepTimes` counts it: rows × pixels; where tokens are left out or kept, what takes as long."""
        if self._tokens is None or not call.tokens:
            return call.work
        latents = call.tensors["LATENTS"]
        features = self.features(latents, call.tokens) or Features()
        rows = coarse(self.calls.ratio(features, self._tokens.row(*latents.shape[2:])))
        return max(1, round(rows * call.pixels))

    def weighed(self, work: Work, room: float = math.inf) -> Work:
        """What a run asks, with its rows' share of whole ones if it leaves tokens out here.

        Args:
            work: As it was asked.
            room: Bytes for what it would keep.
        """
        exact = replace(work, masked=(), masked_steps=0)
        if self._tokens is None or not work.masked_steps:
            return exact
        side = max(1, math.isqrt(work.pixels) // self._scale_factor)
        whole, row = self._tokens.row(side, side), self._tokens.row(side, side, sizes_of(work.masked, side, side))
        if TokenLine.sets * work.rows * row.cached > room:
            return exact
        masked = self.calls.ratio(row, whole)
        steps = (work.steps - work.masked_steps + work.masked_steps * masked) / work.steps
        return replace(work, share=steps + self.calls.ratio(MODULES, whole) / work.rows)

    def features(self, latents: torch.Tensor, tokens: Sequence[TokenRow | None] = ()) -> Features | None:
        """Of a call's rows together; None where no call leaves tokens out.

        Args:
            latents: [B, C, h, w].
            tokens: Of each row what is masked; empty for nothing.
        """
        if self._tokens is None:
            return None
        height, width = latents.shape[2:]
        if not tokens:
            return self._tokens.row(height, width) * len(latents)
        self.is_wanted = True
        kinds = Counter((None, NOTHING) if row is None or not row.sizes else (row.sizes, row.lacks) for row in tokens)
        counted = (self._tokens.row(height, width, sizes, lacks=lacks) * rows for (sizes, lacks), rows in kinds.items())
        return sum(counted, MODULES)

    def note(self, features: Features | None, seconds: float) -> None:
        """A call took so long."""
        if features is not None:
            self.calls.note(features, seconds)
