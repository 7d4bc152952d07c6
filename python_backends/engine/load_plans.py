"""Which blocks of the next step's entries are loaded: those that come sooner than they would be computed."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from ..networks.token_costs import Features
from .call_costs import coarse
from .token_plan import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..networks.token_costs import TokenCosts
    from .call_costs import CallCosts
    from .token_plan import Plan, StackCost
    from .token_rows import TokenRow

    Planner = Callable[[Sequence[StackCost], float], Plan]


class Loads(NamedTuple):
    """A call, and what has to come for the next one like it.

    Attributes:
        side: Height and width of the latents.
        sizes: Of every row, masked tokens by level.
        entries: Rows for which an entry has to come.
        blocks: Bytes of each block of one.
        pace: Bytes a second.
        costs: What calls take is learnt: `CallCosts.coefficients`, about.
    """

    side: tuple[int, int]
    sizes: tuple[tuple[int, ...], ...]
    entries: int
    blocks: tuple[int, ...]
    pace: float
    costs: tuple[float, ...]


class LoadPlans:
    """Those of one shard's calls."""

    def __init__(self, tokens: TokenCosts, calls: CallCosts, stacks: Sequence[int], planner: Planner = plan) -> None:
        """Plans nothing yet.

        Args:
            tokens: What rows compute.
            calls: What that takes.
            stacks: Blocks of each.
            planner: `plan`, or what it is compared with.
        """
        self._tokens, self._calls, self._stacks, self._planner = tokens, calls, tuple(stacks), planner
        self._planned = lru_cache(64)(self._plan)

    def wanted(self, rows: Sequence[TokenRow]) -> frozenset[int] | None:
        """Numbers of the blocks that are to come in time for the call after this one; None where nothing has to."""
        coming = [each for each in (row.comes for row in rows) if each is not None]
        if not coming:
            return None
        first, side = coming[0], rows[0].run.mask.sides[0]
        masked = tuple(row.run.mask.sizes for row in rows)
        now = (self._tokens.row(*side, row.sizes or None) for row in rows)
        lead = self._calls.expected(sum(now, Features())) - first.pending / first.pace
        costs = tuple(map(coarse, self._calls.coefficients))
        loads = Loads(side, masked, len(coming), first.blocks, coarse(first.pace), costs)
        return self._planned(loads, coarse(lead))

    def _plan(self, loads: Loads, lead: float) -> frozenset[int]:
        rows = [self._tokens.stacks(*loads.side, each) for each in loads.sizes]
        masked = [sum(each, Features()) for each in zip(*rows, strict=True)]
        one = self._tokens.stacks(*loads.side)
        whole = [sum((each,) * len(loads.sizes), Features()) for each in one]
        number, costs = 0, []
        for cost, blocks in zip(self._calls.stacks(whole, masked, 1.0), self._stacks, strict=True):
            nbytes = sum(loads.blocks[number : number + blocks])
            number += blocks
            costs.append(replace(cost, load=loads.entries * nbytes / loads.pace))
        found, number, wanted = self._planner(costs, lead), 0, set()
        for is_cached, blocks in zip(found.cached, self._stacks, strict=True):
            wanted |= set(range(number, number + blocks)) if is_cached else set()
            number += blocks
        return frozenset(wanted)
