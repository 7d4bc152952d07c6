"""Who is given a place in a shard's line, and when to try again, where other shards may help and paces vary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepped_shard import TEN, SteppedShard, accepted, refused

from swiftdiffusion.python_backends.engine.messages import Claim, Claimed
from swiftdiffusion.python_backends.engine.places import CALM_S, DOUBT, DOUBTED_AFTER_S, PROBED_AFTER_S, Places
from swiftdiffusion.python_backends.engine.step_times import StepTimes
from swiftdiffusion.python_backends.engine.work import Work

ALONE_S, HELPED_S = 2.5, 1.25
"""What ten steps take one shard, and two."""

SURE = 1.13
"""More than what is left for a noisy machine."""


class Shard(SteppedShard):
    """One of two, which take an eighth of a second a row and step; at first twice that, if others had its cores."""

    def __init__(self, disturbed: bool = False) -> None:
        times = StepTimes()
        for rows in (1, 2, 4, 6, 8):
            times.guess(rows, rows / 8)
            for _ in range(5 if disturbed else 0):
                times.note(rows, rows / 4)
        super().__init__(lambda work, _: work / 8, times, learns=True)
        self.places = Places(self.desk, others=1)

    def ask(self, limit_s: float | None, work: Work = TEN, measured_s: float = 0.0, **claim: Any) -> Claimed:
        """For a place; whoever gets one comes."""
        defaults = {"loosest_s": limit_s, "hold_s": 5.0, "helpers": 0, "helped_in_s": 7.0}
        answer = self.places.claim(Claim(work, limit_s, **(defaults | claim)), measured_s)
        if answer.id is not None:
            self.submit(work, answer.id)
        return answer


def test_never_is_only_what_not_even_an_idle_server_would_do() -> None:
    shard = Shard()
    assert refused(shard.ask(HELPED_S)).retry_after_s is None
    assert refused(shard.ask(SURE * HELPED_S)).retry_after_s == 7.0
    assert accepted(shard.ask(SURE * HELPED_S, helpers=1)).forecast_s == HELPED_S


def test_one_row_gets_no_help() -> None:
    one_row = replace(TEN, rows=1)
    assert refused(Shard().ask(0.7, one_row, helpers=1)).retry_after_s is None
    assert accepted(Shard().ask(SURE * HELPED_S, one_row, helpers=1)).forecast_s == HELPED_S


def test_help_does_not_shorten_what_one_half_has_alone() -> None:
    """In guess mode the ControlNets are the conditional half's."""
    guessed, both = (replace(TEN, control_rows=rows) for rows in ((0, 10), (10, 10)))
    assert guessed.shared(1) == both.shared(1) == Work(1, 1, 10, control_rows=(10,))
    assert TEN.shared(1) == Work(1, 1, 10)
    assert both.shared(0) == both


def test_mask_aware_runs_are_weighed_and_get_no_help() -> None:
    shard, aware = Shard(), replace(TEN, masked=(3, 4), masked_steps=10)
    shard.places = Places(shard.desk, 1, lambda work: replace(work, share=0.5))
    assert shard.places.quote(aware).alone_s == 0.5 * ALONE_S
    assert refused(shard.ask(HELPED_S, aware, helpers=1)).retry_after_s is None
    assert accepted(shard.ask(SURE * 0.5 * ALONE_S, aware)).forecast_s == 0.5 * ALONE_S


def test_who_needs_help_may_try_again_when_nobody_is_in_line_here_and_there() -> None:
    shard = Shard()
    shard.submit(TEN)
    assert refused(shard.ask(SURE * HELPED_S, helped_in_s=0.0)).retry_after_s == ALONE_S
    assert refused(shard.ask(SURE * HELPED_S)).retry_after_s == 7.0
    shard.pass_time(ALONE_S)
    accepted(shard.ask(SURE * HELPED_S, helpers=1))


def test_a_shard_that_seems_slow_is_measured_again_when_it_is_idle() -> None:
    shard = Shard(disturbed=True)
    assert refused(shard.ask(1.2 * ALONE_S, measured_s=1.0)).retry_after_s == pytest.approx(PROBED_AFTER_S - 1.0)
    assert refused(shard.ask(1.2 * HELPED_S, measured_s=10.0)).retry_after_s == 7.0
    assert accepted(shard.ask(1.2 * ALONE_S, measured_s=10.0)).forecast_s == pytest.approx(2 * ALONE_S)
    shard.empty()
    assert accepted(shard.ask(1.3 * ALONE_S)).forecast_s == pytest.approx(ALONE_S, rel=0.15)


def test_who_meets_a_slow_shard_at_work_is_told_when_it_will_be_measured() -> None:
    shard = Shard(disturbed=True)
    shard.submit(TEN)
    answer = refused(shard.ask(1.2 * HELPED_S, helped_in_s=0.0))
    assert answer.retry_after_s == pytest.approx(2 * ALONE_S + PROBED_AFTER_S)


def test_who_would_be_late_for_two_reasons_does_not_come_back_at_once() -> None:
    """It would be measured right now, while other stages take too long."""
    answer = refused(Shard(disturbed=True).ask(1.04 * ALONE_S, loosest_s=1.3 * ALONE_S, measured_s=10.0))
    assert answer.retry_after_s == CALM_S


def test_even_what_is_usual_is_doubted_some_day() -> None:
    """A server whose neighbours have gone must not refuse for ever what it could do by now."""
    shard, doubtful = Shard(), ALONE_S / DOUBT
    assert refused(shard.ask(doubtful, measured_s=DOUBTED_AFTER_S - 1.0)).retry_after_s is None
    assert refused(shard.ask(0.9 * doubtful, measured_s=2 * DOUBTED_AFTER_S)).retry_after_s is None
    accepted(shard.ask(doubtful, measured_s=2 * DOUBTED_AFTER_S))


def test_a_crowd_in_the_other_stages_passes() -> None:
    assert refused(Shard().ask(-3.0, loosest_s=SURE * ALONE_S)).retry_after_s == CALM_S
    assert refused(Shard().ask(-3.0, loosest_s=HELPED_S)).retry_after_s is None


@given(st.lists(st.integers(1, 12), max_size=6), st.integers(0, 20), st.floats(SURE * HELPED_S, 8.0))
def test_who_tries_again_when_told_is_taken(others: list[int], later: int, limit_s: float) -> None:
    shard = Shard()
    for steps in others:
        shard.ask(None, work=replace(TEN, steps=steps))
    shard.pass_time(later / 8)
    answer = shard.ask(limit_s, helped_in_s=0.0)
    if answer.id is None:
        assert answer.retry_after_s is not None
        shard.pass_time(answer.retry_after_s)
        accepted(shard.ask(limit_s, helpers=1))
