"""What holds for every line of a shard's desk."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepped_shard import Pace, SteppedShard, accepted, refused, shard

from swiftdiffusion.python_backends.engine.desk import Desk
from swiftdiffusion.python_backends.engine.line import OVERTAKEN_AT_MOST
from swiftdiffusion.python_backends.engine.step_times import StepTimes
from swiftdiffusion.python_backends.engine.work import Work
from swiftdiffusion.python_backends.request.completed import PRIORITIES


@dataclass(frozen=True)
class Coming:
    """Somebody who comes some time after the one before; `again` from a shard that died."""

    after: int
    work: Work
    patience: float | None
    again: bool

    def to(self, line: SteppedShard) -> None:
        line.pass_time(self.after)
        if self.again:
            line.submit(self.work, "of another desk")
        else:
            line.come(self.work, self.limit_s(line))

    def limit_s(self, line: SteppedShard) -> float | None:
        if self.patience is None:
            return None
        step_s = line.seconds(self.work.of_a_step, self.work.control_work)
        return float(math.ceil(self.patience * self.work.steps * step_s))


def with_controlnets(work: Work, controlnets: int) -> Work:
    """In all of its steps, for all of its rows."""
    return replace(work, control_rows=(controlnets * work.steps,) * work.rows)


paces = st.builds(Pace, st.integers(0, 8), st.integers(1, 4), st.integers(1, 4))
ROWS, PIXELS, STEPS = st.integers(1, 2), st.integers(1, 3), st.integers(1, 12)
works = st.builds(
    with_controlnets, st.builds(Work, ROWS, PIXELS, STEPS, st.sampled_from(PRIORITIES)), st.integers(0, 2)
)
works_of_equals = st.builds(Work, ROWS, PIXELS, STEPS)
patience = st.none() | st.floats(1.1, 4.0)
again = st.integers(0, 7).map(lambda number: number == 7)
comings = st.lists(st.builds(Coming, st.integers(0, 15), works, patience, again), max_size=12)
equals = st.lists(st.builds(Coming, st.integers(0, 15), works_of_equals, patience, st.just(False)), max_size=12)
lines = st.builds(shard, paces, st.integers(1, 4))


@given(lines, comings, st.integers(0, 60), works)
def test_a_quote_is_what_comes_of_it(line: SteppedShard, others: list[Coming], later: int, work: Work) -> None:
    for each in others:
        each.to(line)
    line.pass_time(later)
    came, quote = line.now, line.desk.quote(work)
    assert accepted(line.come(work)).forecast_s == pytest.approx(quote)
    newest = list(line.works)[-1]
    line.empty()
    assert line.ended[newest] - came == pytest.approx(quote)


@given(lines, comings)
def test_no_promise_is_broken_by_who_comes_later(line: SteppedShard, others: list[Coming]) -> None:
    for each in others:
        each.to(line)
    line.empty()
    assert {run: end for run, end in line.ended.items() if end > line.due.get(run, math.inf)} == {}


@given(lines, comings)
def test_nobody_is_overtaken_more_than_twice(line: SteppedShard, others: list[Coming]) -> None:
    for each in others:
        each.to(line)
    line.empty()
    begun = [line.begun[run] for run in line.works]
    for arrival, began in enumerate(begun):
        assert sum(later < began for later in begun[arrival + 1 :]) <= OVERTAKEN_AT_MOST


@given(lines, equals, works_of_equals, st.integers(0, 20))
def test_quotes_grow_with_steps_rows_and_the_line(
    line: SteppedShard, others: list[Coming], work: Work, later: int
) -> None:
    for each in others:
        each.to(line)
    line.pass_time(later)
    quote = line.desk.quote(work)
    assert line.desk.quote(replace(work, steps=work.steps + 1)) > quote
    assert line.desk.quote(replace(work, rows=work.rows + 1)) >= quote
    line.submit(work)
    assert line.desk.quote(work) >= quote


@given(lines, comings, works, st.floats(1.1, 4.0))
def test_what_is_refused_is_accepted_when_it_should_be_tried_again(
    line: SteppedShard, others: list[Coming], work: Work, patience: float
) -> None:
    for each in others:
        each.to(line)
    limit_s = Coming(0, work, patience, False).limit_s(line)
    answer = line.come(work, limit_s)
    if answer.id is None and answer.retry_after_s is not None:
        line.pass_time(answer.retry_after_s)
        accepted(line.come(work, limit_s))


class CountedTimes(StepTimes):
    """Counts what it is asked, as a measure of how far a line is run ahead."""

    asked = 0

    def expected(self, work: int, control_work: int = 0) -> float:
        self.asked += 1
        return super().expected(work, control_work)


@pytest.mark.parametrize("limit_s", [None, 10_000.0])
def test_a_refusal_costs_the_same_however_many_steps_are_in_line(limit_s: float | None) -> None:
    asked = []
    for scale in (1, 100):
        times = CountedTimes()
        times.note(2, 1.0 / scale)
        desk = Desk(8, times, lambda: 0.0, longest=64)
        for number in range(64):
            accepted(desk.claim(Work(1 + number % 2, 1, scale * (5 + number)), limit_s))
        times.asked = 0
        refused(desk.claim(Work(2, 1, 10 * scale), limit_s))
        asked.append(times.asked)
    assert asked[0] == pytest.approx(asked[1], rel=0.1)
    assert asked[1] < 64 * 100
