"""What calls take is learnt from calls, and guessed well before that."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.python_backends.engine.call_costs import CallCosts
from swiftdiffusion.python_backends.engine.token_plan import plan
from swiftdiffusion.python_backends.networks.token_costs import Features

CONVOLUTIONS = 5e5
TRUE = (0.02, 4e-5, 3e-11, 6e-11, 4e-10)
"""Seconds: for each call, cell, multiply-add of linear layers and of attention, byte."""


def call(rows: int, masked: float | None = None, cells: int = 4096) -> Features:
    """Of rows like SDXL's at a fifth of its width: dense work in proportion to cells, attention to their square."""
    share = 1.0 if masked is None else masked
    return Features(
        rows * cells,
        rows * cells * 1.4e6 * (0.1 + 0.9 * share),
        rows * cells * cells * 60 * share,
        0.0 if masked is None else rows * cells * 2e4,
    )


def true_seconds(features: Features) -> float:
    constant, cells, dense, score, cached = TRUE
    work = cells * features.cells + dense * features.dense + score * features.score
    return constant + work + cached * features.cached


def calls(generator: random.Random, count: int, noise: float) -> Iterator[tuple[Features, float]]:
    """Of several sizes and masks, with seconds."""
    for _ in range(count):
        masked = generator.choice([None, generator.uniform(0.05, 0.5)])
        features = call(generator.randint(1, 8), masked, generator.choice([1024, 2304, 4096, 9216]))
        yield features, true_seconds(features) * generator.uniform(1 - noise, 1 + noise)


PROBES = [call(rows, masked, cells) for rows in (1, 2, 8) for masked in (None, 0.1, 0.4) for cells in (1024, 4096)]


def errors(costs: CallCosts) -> list[float]:
    return [abs(costs.expected(each) / true_seconds(each) - 1) for each in PROBES]


def multiply_adds(features: Features) -> float:
    return CONVOLUTIONS * features.cells + features.dense + features.score


@pytest.mark.parametrize("measured", [False, True])
def test_at_first_multiply_adds_tell(measured: bool) -> None:
    costs = CallCosts(CONVOLUTIONS)
    if measured:
        costs.note(call(2), 1.5)
        assert costs.expected(call(2)) == pytest.approx(1.5)
    for probe in PROBES:
        told = costs.expected(probe) / costs.expected(call(2))
        assert told == pytest.approx(multiply_adds(probe) / multiply_adds(call(2)))


def test_coefficients_are_found_without_noise() -> None:
    costs = CallCosts(CONVOLUTIONS)
    for features, seconds in calls(random.Random(0), 200, 0.0):
        costs.note(features, seconds)
    assert max(errors(costs)) < 0.03
    assert costs.coefficients == pytest.approx((*TRUE, 0.0), rel=0.25)


def test_with_noise_expectations_are_right() -> None:
    costs = CallCosts(CONVOLUTIONS)
    for features, seconds in calls(random.Random(1), 300, 0.2):
        costs.note(features, seconds)
    assert statistics.mean(errors(costs)) < 0.06
    assert max(errors(costs)) < 0.2
    fit = costs.fit
    assert fit is not None
    assert 0.9 < fit < 1


def test_a_burst_changes_little() -> None:
    generator, costs = random.Random(2), CallCosts(CONVOLUTIONS)
    for features, seconds in calls(generator, 100, 0.1):
        costs.note(features, seconds)
    before = [costs.expected(each) for each in PROBES]
    for features, seconds in calls(generator, 5, 0.1):
        costs.note(features, 4 * seconds)
    changes = [costs.expected(each) / was for each, was in zip(PROBES, before, strict=True)]
    assert max(changes) < 1.3
    for features, seconds in calls(generator, 60, 0.1):
        costs.note(features, seconds)
    assert statistics.mean(errors(costs)) < 0.06


def test_a_first_call_that_sets_up_is_forgotten() -> None:
    costs = CallCosts(CONVOLUTIONS)
    costs.note(call(2), 4 * true_seconds(call(2)))
    for features, seconds in calls(random.Random(3), 60, 0.1):
        costs.note(features, seconds)
    assert statistics.mean(errors(costs)) < 0.1


def test_another_pace_is_followed() -> None:
    generator, costs = random.Random(4), CallCosts(CONVOLUTIONS)
    for features, seconds in calls(generator, 100, 0.1):
        costs.note(features, seconds)
    for features, seconds in calls(generator, 150, 0.1):
        costs.note(features, 3 * seconds)
    ratios = [costs.expected(each) / true_seconds(each) for each in PROBES]
    assert statistics.mean(ratios) == pytest.approx(3, rel=0.1)


def test_calls_of_one_kind_tell_the_pace_of_others() -> None:
    costs = CallCosts(CONVOLUTIONS)
    for _ in range(100):
        costs.note(call(2), 1.0)
    ratio = costs.expected(call(2, 0.2)) / costs.expected(call(2))
    assert 0.7 < ratio / (multiply_adds(call(2, 0.2)) / multiply_adds(call(2))) < 1.4


@given(
    st.lists(
        st.tuples(
            st.integers(1, 8),
            st.one_of(st.none(), st.floats(0.05, 0.9)),
            st.floats(1e-4, 100),
            st.sampled_from([64, 4096]),
        ),
        max_size=30,
    )
)
def test_coefficients_are_never_negative(noted: list[tuple[int, float | None, float, int]]) -> None:
    costs = CallCosts(CONVOLUTIONS)
    for rows, masked, seconds, cells in noted:
        costs.note(call(rows, masked, cells), seconds)
        assert min(costs.coefficients) >= 0
        assert all(costs.expected(each) >= 0 for each in PROBES)


def test_nothing_is_told_of_the_fit_before_calls_differ() -> None:
    costs = CallCosts(CONVOLUTIONS)
    assert costs.fit is None
    costs.note(call(2), 1.0)
    costs.note(call(2), 1.0)
    assert costs.fit is None


def test_stacks_are_what_the_planner_takes() -> None:
    costs = CallCosts(CONVOLUTIONS)
    for features, seconds in calls(random.Random(5), 200, 0.0):
        costs.note(features, seconds)
    whole, masked = [call(2, None)] * 3, [call(2, 0.2)] * 3
    stacks = costs.stacks(whole, masked, bytes_per_second=1e9)
    assert stacks[1] == stacks[2]
    assert stacks[0].before == pytest.approx(stacks[1].before + costs.coefficients[0])
    assert stacks[1].load == masked[1].cached / 1e9
    assert stacks[1].masked < stacks[1].all
    in_all = sum(each.before + each.all for each in stacks)
    assert in_all == pytest.approx(costs.expected(sum(whole, Features())))
    assert plan(stacks).seconds <= in_all
