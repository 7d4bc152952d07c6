"""Which shard gets which half of which request."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.python_backends.engine import messages
from swiftdiffusion.python_backends.engine.placement import cells, place
from swiftdiffusion.python_backends.engine.unet_calls import unet_calls
from swiftdiffusion.python_backends.lora.files.lora_set import LoraSet


@dataclass(frozen=True)
class Loras:
    """A request's current LoRA set, and what it will want."""

    current: LoraSet = ()
    ahead: LoraSet = ()


@dataclass(frozen=True, eq=False)
class Work:
    """As much of a request as placement looks at."""

    halves: tuple[int, ...] = (0, 1)
    side: int = 8
    loras: Loras = Loras()
    conditioning: dict[str, torch.Tensor] = field(default_factory=dict)
    is_mask_aware: bool = False
    masked: float | None = None

    @property
    def latents(self) -> torch.Tensor:
        return torch.zeros(1, 4, self.side, self.side)

    @property
    def work(self) -> messages.Work:
        return messages.Work(len(self.halves), self.side**2, 1)

    @property
    def home_first(self) -> tuple[int, ...]:
        return self.halves

    def controls(self, half: int) -> tuple[()]:
        return ()

    def tokens(self, half: int) -> None:
        """Nothing is masked of it."""


Rows = list[tuple[Work, int]]
Cost = Callable[[Work, int], float]


def rows_of(batch: list[Work], shards: int, cost: Any = cells) -> list[Rows]:
    """`place` over stand-ins."""
    return cast(Any, place(cast(Any, batch), shards, cost))


def seconds(work: Work, _half: int = 0) -> float:
    """Of a row of SDXL's, as a part of one that computes all: convolutions, keys and values see the whole picture."""
    return 1.0 if work.masked is None else 0.32 + 0.68 * work.masked


def masked_tokens(work: Work, _half: int) -> float:
    return 1.0 if work.masked is None else work.masked


def test_one_request_goes_to_two_shards() -> None:
    work = Work()
    assert [len(rows) for rows in rows_of([work], 2)] == [1, 1]


def test_halves_take_turns_at_home_where_that_is_wanted() -> None:
    class Turned(Work):
        home_first = (1, 0)

    for work, at_home in ((Work(), 0), (Turned(), 1)):
        ((_, half),), _ = rows_of([work], 2)
        assert half == at_home


def test_one_request_without_guidance_goes_to_one_shard() -> None:
    assert sorted(len(rows) for rows in rows_of([Work(halves=(1,))], 2)) == [0, 1]


def test_whole_requests_stay_whole() -> None:
    batch = [Work() for _ in range(4)]
    for rows in rows_of(batch, 2):
        assert len(rows) == 4
        assert len({id(work) for work, _ in rows}) == 2


def test_an_odd_request_is_split_to_even_the_step() -> None:
    assert [len(rows) for rows in rows_of([Work() for _ in range(3)], 2)] == [3, 3]


def test_mask_aware_requests_stay_on_the_first_shard_and_others_make_up_for_it() -> None:
    stays, goes = Work(is_mask_aware=True), Work()
    assert rows_of([stays], 2) == [[(stays, 0), (stays, 1)], []]
    assert rows_of([goes, stays], 2) == [[(stays, 0), (stays, 1)], [(goes, 0), (goes, 1)]]
    assert [len(rows) for rows in rows_of([stays, *(Work() for _ in range(3))], 2)] == [4, 4]


def test_what_mask_aware_requests_leave_out_makes_room_for_others() -> None:
    stays = [Work(is_mask_aware=True, masked=0.1) for _ in range(2)]
    goes = [Work(halves=(1,)) for _ in range(4)]
    assert [len(rows) for rows in rows_of([*stays, *goes], 2)] == [4, 4]
    assert [len(rows) for rows in rows_of([*stays, *goes], 2, seconds)] == [5, 3]


MASKED_TENTH, MASKED_THIRD, MASKED_FIFTH = (1.2, 9.7), (3.5, 6.5), (1.9, 8.1)
"""Beta distributions of masks with means of .11, .35 and .19."""


@pytest.mark.parametrize(
    ("masks", "edits", "requests", "shards"),
    [(MASKED_TENTH, 1.0, 8, 4), (MASKED_THIRD, 1.0, 16, 8), (MASKED_FIFTH, 0.5, 8, 4), (MASKED_FIFTH, 0.5, 16, 8)],
)
def test_counting_costs_evens_steps_better_than_rows_or_masked_tokens(
    masks: tuple[float, float], edits: float, requests: int, shards: int
) -> None:
    """Rows that may go anywhere: how much longer than an even share a step takes."""
    generator = random.Random(0)
    over: dict[str, list[float]] = {"rows": [], "masked tokens": [], "costs": []}
    for _ in range(150):
        drawn = [generator.betavariate(*masks) if generator.random() < edits else None for _ in range(requests)]
        batch = [Work(halves=(1,), masked=each) for each in drawn]
        costs = [seconds(work) for work in batch]
        least = max(sum(costs) / shards, *costs)
        counted: dict[str, Cost] = {"rows": cast(Any, cells), "masked tokens": masked_tokens, "costs": seconds}
        for name, cost in counted.items():
            loads = [sum(seconds(*row) for row in rows) for rows in rows_of(batch, shards, cost)]
            over[name].append(max(loads) / least)
    means = {name: statistics.mean(each) for name, each in over.items()}
    assert means["costs"] < min(means["rows"], means["masked tokens"]) - 0.01, means


def test_a_single_shard_takes_everything() -> None:
    assert [len(rows) for rows in rows_of([Work(), Work(halves=(1,))], 1)] == [3]


works = st.builds(Work, halves=st.sampled_from([(1,), (0, 1)]), side=st.sampled_from([8, 12, 16]))


@given(st.lists(works, max_size=12), st.integers(1, 5))
def test_every_half_is_placed_once_and_shards_are_even(batch: list[Work], shards: int) -> None:
    placed = rows_of(batch, shards)
    assert len(placed) == shards
    assert sorted((id(work), half) for rows in placed for work, half in rows) == sorted(
        (id(work), half) for work in batch for half in work.halves
    )
    loads = [sum(work.latents.numel() for work, _ in rows) for rows in placed]
    largest_request = max((len(work.halves) * work.latents.numel() for work in batch), default=0)
    assert max(loads) - min(loads) <= largest_request


@given(st.lists(works, min_size=1, max_size=8))
def test_a_shard_is_called_once_per_latent_shape(batch: list[Work]) -> None:
    rows = [(work, half) for work in batch for half in work.halves]
    inputs = {work: (work.latents, torch.zeros(1, 1)) for work in batch}
    calls = unet_calls(cast(Any, rows), cast(Any, inputs))
    assert len(calls) == len({work.side for work in batch})
    for call in calls:
        assert len(call.tensors["LATENTS"]) == len(call.tensors["TIMESTEPS"]) == len(call.rows)
    assert sum(len(call.rows) for call in calls) == len(rows)
    assert sum(call.work for call in calls) == sum(work.side**2 for work, _ in rows)


A, B = Loras((("a" * 16, 1.0),)), Loras((("b" * 16, 1.0),))


def test_rows_of_one_set_lie_together() -> None:
    works = [Work(loras=loras) for loras in (B, A, B)]
    inputs = {work: (torch.zeros(1, 4, 8, 8), torch.zeros(1, 1)) for work in works}
    (call,) = unet_calls(cast(Any, [(work, 0) for work in works]), cast(Any, inputs))
    assert call.loras == (A.current, B.current, B.current)
    assert call.of([1, 2]).loras == (B.current, B.current)
    assert [work for work, _ in call.of([1, 2]).rows] == [works[0], works[2]]
    assert call.of([1, 2]).work == 2 * works[0].side ** 2


def test_a_call_says_once_what_its_requests_will_want() -> None:
    works = [Work(loras=Loras(ahead=ahead)) for ahead in (A.current, (), A.current + B.current)]
    inputs = {work: (torch.zeros(1, 4, 8, 8), torch.zeros(1, 1)) for work in works}
    (call,) = unet_calls(cast(Any, [(work, 0) for work in works]), cast(Any, inputs))
    assert call.ahead == tuple(sorted(A.current + B.current))
