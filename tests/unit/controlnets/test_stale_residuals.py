"""Residuals of the step before: taken once, by the next step of the same row only."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from swiftdiffusion.python_backends.controlnets.answers import Answer
from swiftdiffusion.python_backends.controlnets.stale_residuals import StaleResiduals
from swiftdiffusion.python_backends.request.completed import StepHistory


def at(step: int, run: str = "run") -> StepHistory:
    return StepHistory(run, 1, 0, step, is_last=False)


def test_the_next_step_takes_them_once() -> None:
    stale, answer = StaleResiduals(60.0), Future[Answer]()
    assert stale.take(at(0)) is None
    stale.keep([at(0), at(0, "other")], answer, is_new=True)
    taken = stale.take(at(1, "other"))
    assert taken is not None
    assert (taken.answer, taken.row) == (answer, 1)
    assert stale.take(at(1, "other")) is None
    assert stale.take(None) is None


@pytest.mark.parametrize("step", [0, 2, 5])
def test_no_other_step_takes_them(step: int) -> None:
    stale = StaleResiduals(60.0)
    stale.keep([at(0)], Future[Answer](), is_new=True)
    assert stale.take(at(step)) is None


def test_what_nobody_takes_ages() -> None:
    stale = StaleResiduals(0.0)
    stale.keep([at(0)], Future[Answer](), is_new=True)
    stale.drop_old()
    assert stale.take(at(1)) is None
