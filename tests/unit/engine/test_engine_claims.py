"""What a shard's engine forecasts, and whom it gives a place."""

from __future__ import annotations

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
from swiftdiffusion.python_backends.engine.places import PROBED_AFTER_S
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


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 3), st.sampled_from([1.0, 5.0]), st.integers(1, 4), st.floats(0.5, 2.0), st.floats(0.5, 2.0))
def test_a_quote_with_help_is_what_steps_of_the_fullest_shard_take(
    helpers: int, guidance: float, steps: int, one_row_s: float, two_rows_s: float
) -> None:
    with ExitStack() as open_:
        lenders = [LoneShard(f"lender {number}") for number in range(helpers)]
        shard, run = LoneShard(peers=Lenders(lenders)), make_run("a", steps, guidance=guidance)
        for each in (shard, *lenders):
            open_.callback(each.engine.close)
        seconds = {PIXELS: one_row_s, 2 * PIXELS: two_rows_s}
        for of_a_step, expected_s in seconds.items():
            shard.times.note(of_a_step, expected_s)
        quote = shard.engine.quote(run.work)
        shard.submit(run)
        shard.done(run)
    works = [[call.work for call in each.network.calls] for each in (shard, *lenders) if each.network.calls]
    assert quote.alone_s == pytest.approx(sum(seconds[max(step)] for step in zip(*works, strict=True)))


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
    assert shard.engine.quote(replace(TEN, control_rows=20)).seconds == pytest.approx(60.0)
    assert shard.engine.quote(replace(TEN, control_rows=10)).seconds == pytest.approx(40.0)  # in half of its steps


def test_who_would_be_in_time_with_help_may_try_again_when_the_line_is_empty(
    shards: Callable[..., LoneShard],
) -> None:
    shard = shards(peers=Lender(shards("lender")))
    shard.learn()
    assert shard.claim(limit_s=12.0).retry_after_s == pytest.approx(0.0, abs=0.01)
    assert shard.claim(limit_s=None).id is not None
    refused = shard.claim(limit_s=12.0)
    assert refused.id is None
    assert refused.retry_after_s == pytest.approx(20.0, abs=0.01)
    assert shard.claim(limit_s=11.0).retry_after_s is None


def test_an_idle_shard_measures_again_where_it_would_usually_be_fast_enough(
    shard: LoneShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else had its cores."""
    shard.times.guess(2 * PIXELS, 2.0)
    for _ in range(4):
        shard.times.note(2 * PIXELS, 4.0)
    refused = shard.claim(limit_s=30.0)
    assert refused.id is None
    assert refused.retry_after_s is not None
    assert 0.5 * PROBED_AFTER_S < refused.retry_after_s <= PROBED_AFTER_S
    monkeypatch.setattr(places, "PROBED_AFTER_S", 0.0)
    never = shard.claim(limit_s=20.0)
    assert (never.id, never.retry_after_s) == (None, None)
    assert shard.claim(limit_s=30.0).id is not None


def test_an_idle_shard_takes_who_would_be_in_time_with_the_help_of_others(shard: LoneShard) -> None:
    shard.learn()
    refused = shard.claim(limit_s=12.0)
    assert (refused.id, refused.forecast_s, refused.retry_after_s) == (None, 20.0, None)
    accepted = shard.claim(limit_s=12.0, helpers=1)
    assert (accepted.id is not None, accepted.forecast_s) == (True, 10.0)
    assert shard.claim(limit_s=12.0, helpers=1).id is None  # it is not idle any more
