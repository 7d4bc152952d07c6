"""A desk under more load than its shard can carry, for an hour of its clock."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from types import FrameType

import pytest
from stepped_shard import SteppedShard, accepted, refused

from swiftdiffusion.python_backends.engine.desk import Desk
from swiftdiffusion.python_backends.engine.step_times import StepTimes
from swiftdiffusion.python_backends.engine.work import Work

HOUR_S = 3600.0
ALIKE = (Work(2, 1, 20),)
MIXED = (Work(2, 1, 20), Work(2, 2, 20), Work(1, 1, 4), Work(2, 1, 50), Work(2, 1, 20, control_rows=(20, 20)))


def on_a_cpu(work: int, control_work: int = 0) -> float:
    """A step of two runs takes twice as long as of one."""
    return 0.25 * (work + control_work)


def on_a_gpu(work: int, control_work: int = 0) -> float:
    """It takes 1.4 times as long; ControlNets run beside it."""
    return 0.3 + 0.1 * work + 0.01 * control_work


@dataclass(frozen=True)
class Load:
    """What came of an hour.

    Attributes:
        promised: Runs that were admitted.
        kept: Those that were in time.
    """

    promised: int
    kept: int


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """How often functions are called, Python's and others': what takes time, whatever else a machine does."""
    calls: Counter[str] = Counter()
    before = sys.getprofile()

    def note(_: FrameType, event: str, __: object) -> None:
        if event in ("call", "c_call"):
            calls[event] += 1

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def load(pace: Callable[[int, int], float], works: Sequence[Work], times_capacity: float) -> Load:
    """Requests come at random, are to be done in two to three times what they take alone, and each step varies."""
    chance = random.Random(f"{works} {times_capacity}")
    times = StepTimes()
    for work in {each.of_a_step for each in works}:
        times.note(work, pace(work))
    shard = SteppedShard(lambda *work: pace(*work) * chance.uniform(0.8, 1.2), times, places=8, learns=True)
    alone = [each.steps * pace(each.of_a_step, each.control_work) for each in works]
    rate = times_capacity * len(works) / sum(alone)
    while shard.now < HOUR_S:
        shard.pass_time(chance.expovariate(rate))
        kind = chance.randrange(len(works))
        shard.come(works[kind], chance.uniform(2.0, 3.0) * alone[kind])
    shard.empty()
    return Load(len(shard.due), sum(shard.ended[run] <= due for run, due in shard.due.items()))


@pytest.mark.parametrize("works", [ALIKE, MIXED], ids=["alike", "mixed"])
@pytest.mark.parametrize("pace", [on_a_cpu, on_a_gpu])
def test_overload_costs_neither_goodput_nor_promises(pace: Callable[[int, int], float], works: Sequence[Work]) -> None:
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


@pytest.mark.parametrize("patience", [None, 0.3, 0.6])
@pytest.mark.parametrize("promised", [True, False])
def test_who_could_overtake_a_full_line_is_refused_in_few_calls(promised: bool, patience: float | None) -> None:
    """In the median of such lines; 50 000 take 5 ms at ten million in a second, which a core of a server makes."""
    made = []
    for seed in range(20):
        chance, times = random.Random(seed), StepTimes()
        for of_a_step in (1, 2, 4, 8, 16):
            times.note(of_a_step, on_a_gpu(of_a_step) * chance.uniform(0.95, 1.05))
        desk = Desk(8, times, lambda: 0.0)
        for _ in range(64):
            low = Work(chance.randint(1, 2), 1, chance.randint(1, 50), "low")
            accepted(desk.claim(low, 1.5 * desk.quote(low) if promised else None))
        high = Work(2, 1, 20, "high")
        alone_s = high.steps * times.expected(high.of_a_step)
        limit_s = None if patience is None else max(1.2 * alone_s, patience * desk.quote(high))
        with counted_calls() as calls:
            answer = desk.claim(high, limit_s)
        assert refused(answer).retry_after_s is not None
        made.append(calls.total())
    assert median(made) < 50_000
