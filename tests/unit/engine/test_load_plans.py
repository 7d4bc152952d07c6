"""Which blocks come: all from what is fast, none from what is slower than computing, the last ones from in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.engine.call_costs import CallCosts
from swiftdiffusion.python_backends.engine.load_plans import LoadPlans
from swiftdiffusion.python_backends.engine.token_lines import Coming
from swiftdiffusion.python_backends.engine.token_plan import greedy
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.token_costs import TokenCosts
from swiftdiffusion.python_backends.networks.token_masks import TokenMask, token_mask
from swiftdiffusion.python_backends.networks.token_stacks import TokenStacks

SIDE = 32
CALL_S = 0.1


@dataclass
class Run:
    """As much of a run as plans look at."""

    mask: TokenMask


@dataclass
class Row:
    """The same of a row."""

    run: Run
    sizes: tuple[int, ...]
    comes: Coming | None


class Plans:
    """Of a tiny UNet, a guided call of which takes `CALL_S`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        unet = checkpoint.load_unet(torch.device("cpu"), torch.float32)
        self.stacks, self.tokens = TokenStacks(unet), TokenCosts(unet)
        self.calls = CallCosts(self.tokens.convolutions)
        both = self.tokens.row(SIDE, SIDE) + self.tokens.row(SIDE, SIDE)
        for _ in range(5):
            self.calls.note(both, CALL_S)
        mask = torch.zeros(SIDE, SIDE)
        mask[:12, :12] = 1
        self.mask = token_mask(mask, 1 + max(self.stacks.levels))
        sides = self.mask.sides
        tokens = [sides[level][0] * sides[level][1] for level in self.stacks.levels]
        self.blocks = tuple(each * (width + 4) for each, width in zip(tokens, self.stacks.widths, strict=True))

    def wanted(self, pace: float, pending: int = 0, *coming: bool, **options: Any) -> frozenset[int] | None:
        """For a guided run whose halves' entries come with so many bytes a second."""
        plans = LoadPlans(self.tokens, self.calls, self.stacks.blocks, **options)
        entry = Coming(self.blocks, pace, pending)
        rows = [Row(Run(self.mask), self.mask.sizes, entry if comes else None) for comes in coming or (True, True)]
        return plans.wanted(cast(Any, rows))


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    return Plans(Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl"))))


def test_from_fast_tiers_all_comes_and_from_slow_ones_nothing(plans: Plans) -> None:
    every = frozenset(range(len(plans.blocks)))
    assert plans.wanted(1e12) == every
    assert plans.wanted(10.0) == frozenset()
    assert plans.wanted(1e12, 0, True, False) == every
    assert plans.wanted(1e12, 0, False, False) is None


def test_in_between_some_do_and_fewer_where_others_come_before(plans: Plans) -> None:
    nbytes = 2 * sum(plans.blocks)
    counts = [len(plans.wanted(nbytes / (share * CALL_S)) or ()) for share in (0.1, 1.5, 3.0, 30.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]
    pace = nbytes / (1.5 * CALL_S)
    assert len(plans.wanted(pace, 4 * nbytes) or ()) <= len(plans.wanted(pace) or ())


def test_stacks_come_whole(plans: Plans) -> None:
    for share in (1.0, 1.5, 2.0, 3.0):
        wanted, number = plans.wanted(2 * sum(plans.blocks) / (share * CALL_S)), 0
        assert wanted is not None
        for blocks in plans.stacks.blocks:
            assert len(wanted & set(range(number, number + blocks))) in (0, blocks)
            number += blocks


def test_another_planner_may_take_its_place(plans: Plans) -> None:
    assert plans.wanted(1e12, planner=greedy) == frozenset(range(len(plans.blocks)))
