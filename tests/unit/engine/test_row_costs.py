"""A row that leaves tokens out is worth a part of a whole one, as calls tell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.engine.row_costs import RowCosts
from swiftdiffusion.python_backends.engine.unet_calls import UNetCall
from swiftdiffusion.python_backends.engine.work import Work
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.token_costs import Features, TokenCosts
from swiftdiffusion.python_backends.networks.token_masks import token_mask
from swiftdiffusion.python_backends.request.mask_aware import parts_of

SIDE, LEVELS = 16, 3


@dataclass(frozen=True)
class Row:
    """As much of a row as its costs depend on."""

    sizes: tuple[int, ...]
    lacks: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Run:
    """As much of a run."""

    row: Row | None
    latents: torch.Tensor

    def tokens(self, _half: int) -> Row | None:
        return self.row


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenCosts:
    path: Path = checkpoints.sdxl(tmp_path_factory.mktemp("sdxl"))
    return TokenCosts(Checkpoint(path).load_unet(torch.device("cpu"), torch.float32))


def run(row: Row | None, side: int = SIDE) -> Any:
    return cast(Any, Run(row, torch.zeros(1, 4, side, side)))


def masked() -> Row:
    mask = torch.zeros(SIDE, SIDE)
    mask[:5, :5] = 1
    return Row(token_mask(mask, LEVELS).sizes)


def test_whole_rows_cost_their_cells(tokens: TokenCosts) -> None:
    for costs in (RowCosts(tokens), RowCosts(None)):
        assert costs(run(None), 0) == costs(run(Row(())), 1) == 4 * SIDE**2
        assert costs(run(None, 2 * SIDE), 0) == 4 * costs(run(None), 0)


def test_masked_rows_cost_a_part_of_that(tokens: TokenCosts) -> None:
    costs, row = RowCosts(tokens), masked()
    first = costs(run(row), 0)
    assert 0 < first < costs(run(None), 0)
    latents = torch.zeros(1, 4, SIDE, SIDE)
    whole, part = costs.features(latents), costs.features(latents, [cast(Any, row)])
    for _ in range(200):
        costs.note(whole, 1.0)
        costs.note(part, 0.9)
    assert costs(run(row), 0) / costs(run(None), 0) == pytest.approx(0.9, abs=0.05)


def test_a_call_is_the_sum_of_its_rows(tokens: TokenCosts) -> None:
    costs, row = RowCosts(tokens), masked()
    latents = torch.zeros(2, 4, SIDE, SIDE)
    single = tokens.row(SIDE, SIDE)
    assert costs.features(latents) == single + single
    together = single + tokens.row(SIDE, SIDE, row.sizes)
    assert costs.features(latents, [None, cast(Any, row)]) == replace(together, modules=1.0)


def test_stacks_that_lack_a_block_count_as_whole_ones(tokens: TokenCosts) -> None:
    costs, row, latents = RowCosts(tokens), masked(), torch.zeros(1, 4, SIDE, SIDE)
    stacks = len(tokens.stacks(SIDE, SIDE))
    every = [costs.features(latents, [cast(Any, replace(row, lacks=frozenset(range(lacks))))]) for lacks in (0, 1, 99)]
    dense = [0.0 if each is None else each.dense for each in every]
    assert stacks > 1 and dense[0] < dense[1] < dense[2] == tokens.row(SIDE, SIDE).dense


def test_calls_of_few_kinds_turn_nothing_upside_down(tokens: TokenCosts) -> None:
    costs, row = RowCosts(tokens), masked()
    for _ in range(60):  # that of fewer rows sets up, each time
        costs.note(costs.features(torch.zeros(2, 4, SIDE, SIDE)), 0.035)
        costs.note(costs.features(torch.zeros(8, 4, SIDE, SIDE)), 0.020)
    assert 0 < costs(run(row), 0) <= costs(run(None), 0)
    asked = Work(2, (8 * SIDE) ** 2, 20, masked=(2, 4, 6), masked_steps=15)
    assert 0 < costs.weighed(asked).share < 10


def trained(tokens: TokenCosts) -> RowCosts:
    """Of a shard whose calls take a second a row, .4 of a masked one, and half a second more as modules."""
    costs, row, latents = RowCosts(tokens, 8), cast(Any, masked()), torch.zeros(2, 4, SIDE, SIDE)
    for _ in range(300):
        for rows in (1, 2):
            costs.note(costs.features(latents[:rows]), rows)
            costs.note(costs.features(latents[:rows], [row] * rows), 0.5 + 0.4 * rows)
            costs.note(costs.features(latents[:rows], [cast(Any, Row(()))] * rows), 0.5 + rows)
    return costs


def test_a_call_is_worth_the_rows_that_take_as_long(tokens: TokenCosts) -> None:
    costs, latents = trained(tokens), torch.zeros(2, 4, SIDE, SIDE)

    def work(*rows: Row | None) -> int:
        tokens = cast(Any, rows if any(rows) else ())
        return costs.work(UNetCall((), ((), ()), (), ((), ()), {"LATENTS": latents}, 1000, tokens))

    assert work(None, None) == 2000
    assert work(Row(()), Row(())) == pytest.approx(2500, rel=0.1)
    assert work(masked(), masked()) == pytest.approx(1300, rel=0.1)
    assert work(Row(()), masked()) == pytest.approx(1900, rel=0.1)


def test_a_run_is_worth_what_its_steps_take_on_average(tokens: TokenCosts) -> None:
    costs, mask = trained(tokens), np.zeros((SIDE, SIDE))
    mask[:5, :5] = 1
    asked = Work(2, (8 * SIDE) ** 2, 20, masked=parts_of(mask), masked_steps=15)
    found = costs.weighed(asked)
    assert found.share == pytest.approx((15 * 0.4 + 5) / 20 + 0.25, rel=0.1)
    assert found.of_a_step == round(found.share * asked.of_a_step)
    exact = replace(asked, masked=(), masked_steps=0)
    kept = 2 * 2 * tokens.row(SIDE, SIDE, masked().sizes).cached
    assert costs.weighed(asked, kept) == found and costs.weighed(asked, kept - 1) == exact
    assert costs.weighed(exact) == RowCosts(None).weighed(asked) == exact


def test_without_masks_nothing_is_learnt() -> None:
    costs = RowCosts(None)
    assert costs.features(torch.zeros(1, 4, SIDE, SIDE)) is None
    costs.note(None, 1.0)
    assert costs.calls.fit is None
    assert Features() + Features() == Features()
