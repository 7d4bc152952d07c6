"""What steps of any work should take, from those that were taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.python_backends.engine.step_times import StepTimes, WorkTimes


def times_of(*noted: tuple[int, float]) -> StepTimes:
    times = StepTimes()
    for work, seconds in noted:
        times.note(work, seconds)
    return times


def test_nothing_is_expected_before_the_first_step() -> None:
    assert StepTimes().expected(4) == 0


def test_a_single_measurement_grows_with_the_work() -> None:
    times = times_of((4, 2.0))
    assert (times.expected(2), times.expected(4), times.expected(8)) == (1.0, 2.0, 4.0)


def test_what_steps_cost_whatever_their_work_is_found_from_two() -> None:
    times = times_of((2, 3.0), (4, 4.0))  # 2 s and 0.5 s of each
    assert [times.expected(work) for work in (1, 2, 3, 4, 8)] == [2.5, 3.0, 3.5, 4.0, 6.0]


def test_beyond_what_is_known_noise_does_not_make_more_work_faster() -> None:
    times = times_of((2, 3.0), (4, 2.0))
    assert times.expected(8) == 2.0
    assert times.expected(1) == 3.0


def test_nor_slower_than_its_parts() -> None:
    times = times_of((2, 1.0), (4, 4.0))
    assert times.expected(8) == 8.0
    assert times.expected(1) == 0.5


def test_first_steps_are_averaged_evenly() -> None:
    assert times_of((2, 1.0), (2, 2.0), (2, 3.0)).expected(2) == pytest.approx(2.0)


def test_a_new_pace_is_learnt_within_some_steps() -> None:
    times = times_of(*[(2, 1.0)] * 50, *[(2, 3.0)] * 15)
    assert times.expected(2) == pytest.approx(3.0, rel=0.05)


def test_a_faster_step_may_weigh_more() -> None:
    times = WorkTimes(falls=0.5)
    for seconds in [4.0] * 20 + [2.0, 2.0, 2.0]:
        times.note(2, seconds)
    assert times.expected(2) == 2.25
    times.note(2, 3.25)
    assert times.expected(2) == pytest.approx(2.45)


def test_a_guess_gives_way_to_what_is_measured_and_follows_its_pace() -> None:
    """At load other models had the cores: everything was three times as slow."""
    times = StepTimes()
    times.guess(2, 3.0)
    times.guess(4, 6.0)
    times.note(1, 0.5)
    assert times.expected(1) == 0.5
    assert times.expected(2) == pytest.approx(1.0)
    assert times.expected(4) == pytest.approx(2.0)
    times.note(4, 2.4)
    assert times.expected(4) == 2.4


def test_what_was_not_measured_for_long_follows_the_pace() -> None:
    times = times_of((2, 1.0), (4, 2.0), *[(2, 1.0)] * 60, *[(2, 2.0)] * 30)
    assert times.expected(4) == pytest.approx(4.0, rel=0.05)
    assert times_of((2, 1.0), (4, 2.0), *[(2, 2.0)] * 15).expected(4) == 2.0


def test_less_work_that_was_measured_long_ago_takes_no_longer_than_more() -> None:
    """Else a shard whose first steps were slow would look slow to all, and get none from which to learn better."""
    assert times_of((2, 9.0), *[(4, 2.0)] * 40).expected(2) == pytest.approx(2.0)
    assert times_of(*[(4, 2.0)] * 40, (2, 9.0)).expected(2) == 9.0


def test_steps_with_controlnets_teach_nothing_about_those_without() -> None:
    times = times_of((2, 1.0), (4, 2.0))
    for _ in range(40):
        times.note(2, 4.0, control_work=2)
    assert [times.expected(work) for work in (2, 4)] == [1.0, 2.0]
    assert times.expected(2, 2) == pytest.approx(4.0)
    assert times.expected(4, 2) == pytest.approx(5.0)
    assert times.expected(2, 1) == pytest.approx(2.5)


def test_controlnets_that_cost_nothing_at_first_may_cost_something_later() -> None:
    times = times_of((2, 1.0))
    times.note(2, 0.9, control_work=2)
    assert times.expected(2, 2) == pytest.approx(1.0, rel=0.02)
    for _ in range(30):
        times.note(2, 3.0, control_work=2)
    assert times.expected(2, 2) == pytest.approx(3.0, rel=0.02)


def test_a_step_with_controlnets_that_is_faster_than_its_unet_should_be_tells_of_that() -> None:
    """Else those that come after a slow spell would seem slow for ever, if none without ControlNets came between."""
    times = times_of((2, 3.0))
    for _ in range(30):
        times.note(2, 1.2, control_work=2)
    assert times.expected(2, 2) == pytest.approx(1.2, rel=0.35)
    assert times.expected(2) < 1.7


def test_a_spell_of_slower_steps_hardly_changes_what_they_take_at_best() -> None:
    times = StepTimes()
    times.guess(2, 1.0)
    times.note(2, 1.5, control_work=2)
    for _ in range(10):
        times.note(2, 1.6)
        times.note(2, 2.6, control_work=2)
    assert times.expected(2) == pytest.approx(1.6, rel=0.02)
    assert times.expected(2, 2) == pytest.approx(2.6, rel=0.05)
    assert 1.0 < times.at_best(2) < 1.15
    assert 1.5 < times.at_best(2, 2) < 1.75
    for _ in range(200):
        times.note(2, 1.6)
    assert times.at_best(2) == pytest.approx(1.6, rel=0.02)
    for _ in range(20):
        times.note(2, 0.8)
    assert times.at_best(2) == times.expected(2) == pytest.approx(0.8, rel=0.02)


def test_shorter_steps_need_more_of_them_until_a_slower_pace_is_usual() -> None:
    times = StepTimes()
    times.guess(2, 0.01)
    for _ in range(100):
        times.note(2, 0.02)
    assert times.at_best(2) < 0.011


def test_the_first_step_of_some_work_does_not_say_what_is_usual() -> None:
    """It may set up."""
    times = times_of((2, 0.2))
    times.note(8, 5.0)
    assert times.expected(8) == 5.0
    assert times.at_best(8) == pytest.approx(0.8, rel=0.2)


def test_nor_does_it_in_a_slow_spell() -> None:
    times = StepTimes()
    for work in (1, 2, 4, 8):
        times.guess(work, work / 8)
    for _ in range(10):
        times.note(4, 1.0)
    before = [times.at_best(work) for work in (3, 6, 8)]
    times.note(6, 1.5)
    times.note(3, 0.75)
    assert [times.at_best(work) for work in (3, 6, 8)] == pytest.approx(before, rel=0.1)


noted = st.lists(st.tuples(st.integers(1, 40), st.floats(0.01, 10)), min_size=1, max_size=12)


@given(noted, st.integers(1, 100))
def test_answers_do_not_depend_on_earlier_questions(measured: list[tuple[int, float]], work: int) -> None:
    asked = StepTimes()
    for each in measured:
        asked.note(*each)
        asked.expected(work)
    assert asked.expected(work) == times_of(*measured).expected(work)


@given(noted, st.integers(1, 100))
def test_what_was_not_measured_lies_between_neighbours_or_within_bounds(
    measured: list[tuple[int, float]], work: int
) -> None:
    times = times_of(*measured)
    known = sorted({each for each, _ in measured})
    below, above = [each for each in known if each <= work], [each for each in known if each >= work]
    if below and above:
        low, high = sorted((times.expected(below[-1]), times.expected(above[0])))
    else:
        nearest = (below or above)[-1 if below else 0]
        low, high = sorted((times.expected(nearest), times.expected(nearest) * work / nearest))
    assert low * (1 - 1e-9) <= times.expected(work) <= high * (1 + 1e-9)
