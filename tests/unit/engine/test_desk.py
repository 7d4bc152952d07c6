"""A shard's desk: who steps, what is promised and kept, who overtakes whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stepped_shard import TEN, Pace, SteppedShard, accepted, refused, shard

from swiftdiffusion.python_backends.engine.claims import CLAIM_S
from swiftdiffusion.python_backends.engine.desk import Desk
from swiftdiffusion.python_backends.engine.line import SAFETY
from swiftdiffusion.python_backends.engine.work import Work
from swiftdiffusion.python_backends.request.completed import Priority

# Without promises.


def test_the_first_that_can_step_share_the_next_one_in_the_order_of_arrival() -> None:
    desk = Desk(2, Pace().learnt(), lambda: 0.0)
    for run in "abc":
        desk.enter(run, TEN)
    assert desk.batch("abc") == ["a", "b"]
    desk.leave("a")
    assert desk.batch("bc") == ["b", "c"]


def test_who_waits_for_a_lora_takes_no_place_and_keeps_it() -> None:
    desk = Desk(2, Pace().learnt(), lambda: 0.0)
    for run in "abcd":
        desk.enter(run, TEN)
    assert desk.batch("acd") == ["a", "c"]
    assert desk.batch("abcd") == ["a", "c"]  # who has begun is not pushed out
    desk.leave("c")
    assert desk.batch("abd") == ["a", "b"]


def test_a_run_without_a_limit_is_accepted_until_the_line_is_full() -> None:
    line = shard(longest=2)
    accepted(line.come(TEN))
    accepted(line.come(Work(2, 1, 20)))
    refusal = refused(line.come(TEN))
    assert refusal.retry_after_s == pytest.approx(40, abs=0.01)  # ten steps with two runs of two rows
    assert refusal.retry_after_s is not None
    line.pass_time(refusal.retry_after_s)
    accepted(line.come(TEN))


# Promises.


def test_what_would_be_late_even_alone_is_refused_for_good() -> None:
    refusal = refused(shard().come(TEN, limit_s=19.0))
    assert (refusal.forecast_s, refusal.retry_after_s) == (20.0, None)


def test_a_limit_that_is_just_enough_is_enough_at_any_time() -> None:
    line = shard()
    for _ in range(100):
        line.pass_time(24.001)
        accepted(line.come(TEN, limit_s=SAFETY * 20.0))
        line.empty()


def test_who_would_make_a_promise_late_waits() -> None:
    line = shard(places=4)
    accepted(line.come(TEN, limit_s=23.0))
    other = line.submit(TEN)
    line.pass_time(15.0)
    assert other not in line.begun
    line.empty()
    assert line.ended["run 0"] <= 23
    assert line.ended[other] == 40


def test_who_leaves_a_promise_its_time_shares() -> None:
    line = shard(places=4)
    accepted(line.come(TEN, limit_s=50.0))
    line.submit(TEN)
    line.empty()
    assert line.ended["run 0"] == line.ended["run 1"] == 40


def test_a_promise_that_cannot_be_kept_any_more_keeps_nobody_out() -> None:
    pace = Pace()
    line = SteppedShard(lambda *work: 3 * pace(*work), pace.learnt())
    accepted(line.come(TEN, limit_s=23.0))
    line.submit(TEN)
    line.pass_time(13.0)  # two steps of six seconds, and eight more to come
    assert set(line.begun) == {"run 0", "run 1"}


def test_a_place_that_is_claimed_is_not_taken_by_a_later_run() -> None:
    line = shard()
    claim = accepted(line.desk.claim(TEN, limit_s=25.0))
    line.submit(TEN)
    line.pass_time(1.0)
    assert not line.begun
    line.submit(TEN, claim.id)
    line.empty()
    assert line.ended["run 1"] <= 25


def test_a_claim_becomes_what_its_run_is() -> None:
    desk = Desk(4, Pace().learnt(), lambda: 0.0)
    desk.enter("a", replace(TEN, rows=1, control_rows=(10,)), accepted(desk.claim(TEN)).id)
    assert desk.empty_in_s == 20.0
    desk.leave("a")
    assert desk.empty_in_s == 0.0


def test_a_claim_expires() -> None:
    line = shard()
    alone = line.desk.quote(TEN)
    claim = accepted(line.desk.claim(TEN, limit_s=25.0))
    assert line.desk.quote(TEN) > alone
    line.now = CLAIM_S
    assert line.desk.quote(TEN) == alone
    line.submit(TEN, claim.id)
    line.submit(TEN)
    assert line.desk.batch(["run 0", "run 1"]) == ["run 0", "run 1"]  # nothing is promised to either


def test_a_claim_can_be_given_back() -> None:
    desk = Desk(4, Pace().learnt(), lambda: 0.0)
    alone = desk.quote(TEN)
    desk.leave(accepted(desk.claim(TEN)).id)
    assert desk.quote(TEN) == alone


def test_a_run_from_elsewhere_goes_before_those_that_wait() -> None:
    desk = Desk(1, Pace().learnt(), lambda: 0.0)
    desk.enter("a", TEN)
    desk.batch("a")
    desk.enter("b", TEN)
    desk.enter("c", TEN, claim_id="of another desk", restarted=True)
    desk.leave("a")
    assert desk.batch("bc") == ["c"]


def test_while_claims_are_refused_nobody_as_patient_may_wait() -> None:
    line = shard(places=1)
    accepted(line.come(TEN))
    waits = accepted(line.desk.claim(TEN, limit_s=50.0))
    refused(line.come(TEN, limit_s=55.0))
    line.desk.leave(waits.id)
    refusal = refused(line.come(TEN, limit_s=50.0))
    assert refusal.forecast_s == waits.forecast_s
    assert refusal.retry_after_s is not None
    assert 17 < refusal.retry_after_s < 21  # it would begin after 20 s
    accepted(line.come(TEN, limit_s=70.0))


# Priorities.


def ten(priority: Priority) -> Work:
    return replace(TEN, priority=priority)


def test_high_goes_before_normal_and_that_before_low_unless_they_have_begun() -> None:
    line = shard(places=1)
    for work in (ten("low"), ten("low"), TEN, ten("high")):
        line.come(work)
        line.pass_time(1.0)
    line.empty()
    assert sorted(line.begun, key=lambda run: line.begun[run]) == ["run 0", "run 3", "run 2", "run 1"]


def test_high_does_not_break_a_promise() -> None:
    line = shard(places=1)
    line.come(TEN)
    accepted(line.come(ten("low"), 46.0))
    line.come(ten("high"))
    line.empty()
    assert line.ended["run 1"] == 40
