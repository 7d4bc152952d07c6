"""What a shard's engine forecasts, and whom it gives a place."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lone_shard import PIXELS, TEN, Lender, LoneShard, alone, equal, make_run, until

from swiftdiffusion.python_backends.engine import places
from swiftdiffusion.python_backends.engine.step_times import StepTimes
from swiftdiffusion.python_backends.engine.unet_calls import UNetCall


class Lenders(Lender):
    """Several shards that have lent themselves."""

    def __init__(self, shards: list[LoneShard]) -> None:
        self._lenders = [Lender(shard) for shard in shards]

    def __len__(self) -> int:
        return len(self._lenders)

    def lent(self, most: int) -> list[Lender]:
        return self._lenders[:most]

    def submit(self, peer: Lender, call: UNetCall) -> Any:
        return peer.submit(peer, call)


@settings(max_examples=40)
@given(
    st.integers(0, 3),
    st.sampled_from([1.0, 5.0]),
    st.integers(1, 4),
    st.integers(0, 2),
    st.booleans(),
    st.tuples(*[st.floats(0.5, 2.0)] * 3),
)
def test_a_quote_with_help_is_what_steps_of_the_fullest_shard_take(
    helpers: int, guidance: float, steps: int, controlnets: int, guess_mode: bool, seconds: tuple[float, float, float]
) -> None:
    with ExitStack() as open_:
        lenders = [LoneShard(f"lender {number}") for number in range(helpers)]
        shard = LoneShard(peers=Lenders(lenders))
        run = make_run("a", steps, guidance=guidance, controlnets=controlnets, guess_mode=guess_mode)
        for each in (shard, *lenders):
            open_.callback(each.engine.close)
        learnt, one_row_s = StepTimes(), seconds[0]
        for times in (shard.times, learnt):
            times.note(PIXELS, one_row_s)
            times.note(2 * PIXELS, seconds[1])
            times.note(PIXELS, one_row_s + seconds[2], PIXELS)
        quote = shard.engine.quote(run.work)
        shard.submit(run)
        shard.done(run)
    calls = [each.network.calls for each in (shard, *lenders) if each.network.calls]
    took = [
        learnt.expected(max(call.work for call in step), max(call.control_work for call in step))
        for step in zip(*calls, strict=True)
    ]
    assert quote.alone_s == pytest.approx(sum(took))


def test_a_place_that_is_claimed_is_kept_and_taken_up(shard: LoneShard) -> None:
    shard.learn()
    claimed = shard.claim(limit_s=25.0)
    assert claimed.id is not None
    assert claimed.forecast_s == 20.0
    later, run = make_run("later", 10), make_run("a", 10, claim_id=claimed.id)
    shard.submit(later)
    until(lambda: shard.engine.quote(TEN).seconds == 60.0)  # it is in line, where the thread looks again and again
    time.sleep(0.02)
    shard.submit(run)
    assert equal(shard.done(run, later), [alone(make_run("a", 10)), alone(make_run("later", 10))])
    assert {each for each, _ in shard.network.calls[0].rows} == {run}


def test_a_claim_can_be_given_back(shard: LoneShard) -> None:
    shard.learn()
    claimed = shard.claim(limit_s=None)
    assert not shard.engine.quote(TEN).idle
    shard.engine.forget([cast("str", claimed.id)])
    until(lambda: shard.engine.quote(TEN).idle)


def test_steps_with_controlnets_change_no_forecast_of_runs_without(shard: LoneShard) -> None:
    shard.learn()
    shard.network.seconds = 6.0
    run = make_run("a", controlnets=1)
    shard.submit(run)
    shard.done(run)
    assert shard.engine.quote(TEN).seconds == 20.0
    assert shard.engine.quote(replace(TEN, control_rows=(10, 10))).seconds == pytest.approx(60.0)
    assert shard.engine.quote(replace(TEN, control_rows=(5, 5))).seconds == pytest.approx(40.0)  # in half of its steps


@pytest.mark.parametrize("guess_mode", [False, True])
def test_nor_do_those_that_wait_for_controlnets_of_rows_elsewhere(
    shards: Callable[..., LoneShard], guess_mode: bool
) -> None:
    lender = shards("lender")
    shard = shards(peers=Lender(lender))
    for each in (shard, lender):
        each.learn()
        each.network.seconds = 6.0
    run = make_run("a", controlnets=1, guess_mode=guess_mode)
    shard.submit(run)
    shard.done(run)
    for each in (shard, lender):
        assert each.times.expected(PIXELS) == 1.0
    assert shard.times.expected(PIXELS, PIXELS) == pytest.approx(6.0)


def test_an_idle_shard_takes_who_would_be_in_time_with_the_help_of_others(shard: LoneShard) -> None:
    shard.learn()
    refused = shard.claim(limit_s=12.0)
    assert (refused.id, refused.forecast_s, refused.retry_after_s) == (None, 20.0, None)
    accepted = shard.claim(limit_s=12.0, helpers=1)
    assert (accepted.id is not None, accepted.forecast_s) == (True, 10.0)
    assert shard.claim(limit_s=12.0, helpers=1).id is None  # it is not idle any more


def test_a_shard_that_has_not_stepped_for_long_takes_who_would_usually_be_in_time(
    shard: LoneShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard.times.guess(2 * PIXELS, 2.0)
    for _ in range(4):
        shard.times.note(2 * PIXELS, 4.0)
    monkeypatch.setattr(places, "PROBED_AFTER_S", math.inf)
    assert shard.claim(limit_s=30.0).id is None
    monkeypatch.setattr(places, "PROBED_AFTER_S", 0.0)
    assert shard.claim(limit_s=30.0).id is not None
