"""A desk under more load than its shard can carry, for an hour of its clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from stepped_shard import SteppedShard, accepted

from swiftdiffusion.python_backends.engine.messages import Work
from swiftdiffusion.python_backends.engine.step_times import StepTimes

HOUR_S = 3600.0
ALIKE = (Work(2, 1, 20),)
MIXED = (Work(2, 1, 20), Work(2, 2, 20), Work(1, 1, 4), Work(2, 1, 50))


def on_a_cpu(work: int) -> float:
    """A step of two runs takes twice as long as of one."""
    return 0.25 * work


def on_a_gpu(work: int) -> float:
    """It takes 1.4 times as long."""
    return 0.3 + 0.1 * work


@dataclass(frozen=True)
class Load:
    """What came of an hour.

    Attributes:
        promised: Runs that were admitted.
        kept: Those that were in time.
    """

    promised: int
    kept: int


def load(pace: Callable[[int], float], works: Sequence[Work], times_capacity: float) -> Load:
    """Requests come at random, are to be done in two to three times what they take alone, and each step varies."""
    chance = random.Random(f"{works} {times_capacity}")
    times = StepTimes()
    for work in {each.of_a_step for each in works}:
        times.note(work, pace(work))
    shard = SteppedShard(lambda work: pace(work) * chance.uniform(0.8, 1.2), times, places=8, learns=True)
    alone = [each.steps * pace(each.of_a_step) for each in works]
    rate = times_capacity * len(works) / sum(alone)
    while shard.now < HOUR_S:
        shard.pass_time(chance.expovariate(rate))
        kind = chance.randrange(len(works))
        shard.come(works[kind], chance.uniform(2.0, 3.0) * alone[kind])
    shard.empty()
    return Load(len(shard.due), sum(shard.ended[run] <= due for run, due in shard.due.items()))


@pytest.mark.parametrize("works", [ALIKE, MIXED], ids=["alike", "mixed"])
@pytest.mark.parametrize("pace", [on_a_cpu, on_a_gpu])
def test_overload_costs_neither_goodput_nor_promises(pace: Callable[[int], float], works: Sequence[Work]) -> None:
    loads = {rate: load(pace, works, rate) for rate in (0.5, 1.0, 2.0, 4.0, 10.0)}
    assert loads[10.0].kept >= 0.9 * max(each.kept for each in loads.values())
    for each in loads.values():
        assert each.kept >= 0.9 * each.promised


def test_sharing_that_pays_is_learnt_and_used() -> None:
    alone_at_a_time = HOUR_S / (20 * on_a_gpu(2))
    assert load(on_a_gpu, ALIKE, 10.0).kept > 1.5 * alone_at_a_time


def test_the_line_is_calm_again_soon_after_a_burst() -> None:
    times = StepTimes()
    times.note(2, on_a_cpu(2))
    shard = SteppedShard(on_a_cpu, times)
    for _ in range(100):
        shard.come(ALIKE[0], 25.0)
    shard.pass_time(25.0)
    assert accepted(shard.come(ALIKE[0], 25.0)).forecast_s == 10.0
