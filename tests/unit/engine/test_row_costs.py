"""A row that leaves tokens out is worth a part of a whole one, as calls tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.engine.row_costs import RowCosts
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.token_costs import Features, TokenCosts
from swiftdiffusion.python_backends.networks.token_masks import token_mask

SIDE, LEVELS = 16, 3


@dataclass(frozen=True)
class Row:
    """As much of a row as its costs depend on."""

    sizes: tuple[int, ...]


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
    assert costs.features(latents, [None, cast(Any, row)]) == single + tokens.row(SIDE, SIDE, row.sizes)


def test_without_masks_nothing_is_learnt() -> None:
    costs = RowCosts(None)
    assert costs.features(torch.zeros(1, 4, SIDE, SIDE)) is None
    costs.note(None, 1.0)
    assert costs.calls.fit is None
    assert Features() + Features() == Features()
