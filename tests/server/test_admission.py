"""Admission: who would be late is refused at once, with a forecast; who is admitted is in time; PRIORITY."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from wire import Picture, generate, metrics

pytestmark = pytest.mark.parametrize("tiny", ["other"], indirect=True)
FIELDS: dict[str, Any] = {"PROMPT": "a cat", "GUIDANCE_SCALE": 5.0, "HEIGHT": 128, "WIDTH": 128}
SAID = re.compile(
    r"the request would be done in (\d+) ms; TIMEOUT_MS allows (\d+) ms(?:, which is too close to be sure of)?; "
    r"(?:retry_after_ms (\d+)|it would never be)"
)


def generate_once_admitted(tiny: Any, **fields: Any) -> Picture:
    """As clients do: who is refused, since the machine is slow at this moment, comes again when told to."""
    given_up = time.monotonic() + 60
    while True:
        try:
            return generate(tiny, tiny.model, **fields)
        except InferenceServerException as refused:
            said = SAID.search(str(refused))
            assert said, refused
            assert said[3], refused
            assert time.monotonic() < given_up, refused
            time.sleep(int(said[3]) / 1000)


def test_who_would_be_late_is_refused_before_anything_is_done(tiny: Any) -> None:
    solo = generate(tiny, tiny.model, **FIELDS, SEED=1, STEPS=100)
    whole_ms = sum(solo.info["timings_ms"].values())
    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(generate, tiny, tiny.model, **FIELDS, SEED=seed, STEPS=100) for seed in range(4)]
        time.sleep(0.3)
        started = time.monotonic()
        with pytest.raises(InferenceServerException) as caught:
            generate(tiny, tiny.model, **FIELDS, SEED=9, STEPS=100, TIMEOUT_MS=int(1.5 * whole_ms))
        refused_ms = 1000 * (time.monotonic() - started)
        assert not any(one.done() for one in running)
        assert refused_ms < whole_ms
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        said = SAID.search(str(caught.value))
        assert said, caught.value
        forecast, limit, retry = (int(number) for number in said.groups())
        assert forecast > limit >= whole_ms
        assert retry > 0
        assert all(one.result().info["seed"] == seed for seed, one in enumerate(running))
    late = generate_once_admitted(tiny, **FIELDS, SEED=9, STEPS=100, TIMEOUT_MS=int(3 * whole_ms))
    assert late.info["forecast_came_to_ms"] < 3 * whole_ms


def test_what_can_never_be_in_time_says_so(tiny: Any) -> None:
    generate(tiny, tiny.model, **FIELDS, STEPS=20)
    with pytest.raises(InferenceServerException, match="it would never be: ask for fewer steps or pixels"):
        generate(tiny, tiny.model, **FIELDS, STEPS=200, TIMEOUT_MS=20)


def test_the_forecast_and_what_it_came_to_are_told_and_counted(tiny: Any) -> None:
    before = metrics(tiny)
    info = generate(tiny, tiny.model, **FIELDS, STEPS=50).info
    assert 0 < info["forecast_ms"] < 5 * info["forecast_came_to_ms"]
    count = f'swiftdiffusion_forecast_ratio_count{{pipeline="{tiny.model}"}}'
    assert metrics(tiny)[count] == before.get(count, 0) + 1


def test_who_is_important_comes_first(tiny: Any) -> None:
    """Of those that wait behind a full batch."""
    with ThreadPoolExecutor(12) as threads:
        running = [threads.submit(generate, tiny, tiny.model, **FIELDS, STEPS=60) for _ in range(8)]
        time.sleep(0.3)
        ends: dict[str, float] = {}

        def timed(priority: str) -> None:
            generate(tiny, tiny.model, **FIELDS, STEPS=60, PRIORITY=priority)
            ends[priority] = time.monotonic()

        waiting = []
        for priority in ("low", "normal", "high"):
            waiting.append(threads.submit(timed, priority))
            time.sleep(0.1)
        for one in (*running, *waiting):
            one.result()
    assert ends["high"] < ends["low"]


def test_an_unknown_priority_is_refused(tiny: Any) -> None:
    with pytest.raises(InferenceServerException, match='PRIORITY is "urgent"; allowed: low, normal, high'):
        generate(tiny, tiny.model, PROMPT="a cat", PRIORITY="urgent")
