"""Which stacks load and which compute all: no plan is faster than the planner's."""

from __future__ import annotations

import random
import statistics
import time
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.python_backends.engine.token_plan import StackCost, greedy, plan, simulate, steady

ROUNDING = 1e-9
seconds = st.one_of(st.integers(0, 12).map(float), st.floats(0, 12))
stacks_of = st.tuples(seconds, seconds, seconds, seconds).map(
    lambda each: StackCost(load=each[0], masked=each[1], all=each[1] + each[2], before=each[3])
)
lists = st.lists(stacks_of, max_size=10)
leads = st.one_of(st.just(0.0), st.floats(0, 40))
rooms = st.one_of(st.none(), st.integers(1, 4))


def fastest(stacks: list[StackCost], lead: float = 0.0, room: int | None = None) -> float:
    """Brute force."""
    return min(simulate(stacks, cached, lead, room)[0] for cached in product((False, True), repeat=len(stacks)))


def drawn(generator: random.Random, count: int) -> list[StackCost]:
    return [
        StackCost(
            generator.uniform(0, 10),
            masked := generator.uniform(0, 5),
            masked + generator.uniform(0, 8),
            generator.choice([0.0, generator.uniform(0, 3)]),
        )
        for _ in range(count)
    ]


def test_caching_what_is_faster_now_makes_the_next_wait() -> None:
    stacks = [StackCost(load=5, masked=1, all=7)] * 2
    assert greedy(stacks).seconds == 11
    found = plan(stacks)
    assert (found.cached, found.seconds, found.stalled) == ((False, True), 8, 0)


def test_streams_and_waiting() -> None:
    stacks = [StackCost(4, 1, 3, before=1), StackCost(4, 1, 3, before=2)]
    assert simulate(stacks, (True, True)) == (9, 4)
    assert simulate(stacks, (True, True), lead=4) == (5, 0)
    assert simulate(stacks, (True, True), room=1) == (10, 5), "the second load waits until the first is used"
    assert simulate(stacks, (True, True), room=2) == (9, 4)
    assert simulate(stacks, (False, True)) == (7, 0)
    assert simulate(stacks, (False, False), room=1) == (9, 0)
    assert simulate([], ()) == (0, 0)


@given(lists, leads)
def test_no_plan_is_faster(stacks: list[StackCost], lead: float) -> None:
    assert plan(stacks, lead).seconds == pytest.approx(fastest(stacks, lead), abs=ROUNDING)


@given(st.lists(stacks_of, max_size=8), leads)
def test_no_plan_is_faster_with_room_for_one(stacks: list[StackCost], lead: float) -> None:
    assert plan(stacks, lead, 1).seconds == pytest.approx(fastest(stacks, lead, 1), abs=ROUNDING)


@given(lists, leads, rooms)
def test_it_is_never_worse_than_simpler_plans(stacks: list[StackCost], lead: float, room: int | None) -> None:
    found = plan(stacks, lead, room)
    assert (found.seconds, found.stalled) == simulate(stacks, found.cached, lead, room)
    simple = [greedy(stacks, lead, room).seconds]
    simple += [simulate(stacks, [every] * len(stacks), lead, room)[0] for every in (False, True)]
    assert found.seconds <= min(simple) + ROUNDING


@given(lists, leads)
def test_more_room_is_never_slower(stacks: list[StackCost], lead: float) -> None:
    found = [plan(stacks, lead, room).seconds for room in (1, 2, 3, 4, None)]
    assert all(less >= more - ROUNDING for less, more in pairwise(found))


@given(lists, leads, st.booleans())
def test_a_longer_lead_is_never_slower(stacks: list[StackCost], lead: float, one_place: bool) -> None:
    room = 1 if one_place else None
    assert plan(stacks, lead + 1, room).seconds <= plan(stacks, lead, room).seconds + ROUNDING


def test_with_some_room_it_is_nearly_the_fastest() -> None:
    generator = random.Random(0)
    over = []
    for _ in range(60):
        stacks, lead = drawn(generator, 8), generator.choice([0.0, generator.uniform(0, 20)])
        room = generator.randint(2, 4)
        over.append(plan(stacks, lead, room).seconds / fastest(stacks, lead, room) - 1)
    assert min(over) >= -ROUNDING
    assert statistics.mean(over) < 0.001
    assert sum(each > ROUNDING for each in over) <= 3


def test_room_for_nothing_is_refused() -> None:
    for planned in (plan, greedy):
        with pytest.raises(ValueError, match="room for 0 loads"):
            planned([], 0.0, 0)


@given(lists)
def test_in_the_long_run_it_is_never_worse_than_all_or_none(stacks: list[StackCost]) -> None:
    found = steady(stacks)
    loads, fixed = sum(each.load for each in stacks), sum(each.before for each in stacks)
    assert found.seconds <= max(loads, fixed + sum(each.masked for each in stacks)) + ROUNDING
    assert found.seconds <= fixed + sum(each.all for each in stacks) + ROUNDING
    assert found.seconds <= plan(stacks, lead=1e9).seconds + loads + ROUNDING, "a call's computation, beside any loads"


@given(st.integers(1, 10), stacks_of)
def test_in_the_long_run_equal_stacks_are_planned_best(count: int, stack: StackCost) -> None:
    found = steady([stack] * count)
    best = min(
        max(number * stack.load, count * stack.before + number * stack.masked + (count - number) * stack.all)
        for number in range(count + 1)
    )
    assert found.seconds == pytest.approx(best, abs=ROUNDING)


@pytest.mark.parametrize(("room", "most_s"), [(None, 0.005), (1, 0.005), (2, 0.01), (4, 0.02)])
def test_planning_takes_no_time(room: int | None, most_s: float) -> None:
    stacks, took = drawn(random.Random(1), 16), []
    for _ in range(9):
        started = time.thread_time()
        plan(stacks, 3.0, room)
        took.append(time.thread_time() - started)
    assert min(took) < most_s
