"""Admission: who would be late is refused at once, with a forecast; who is admitted is in time; PRIORITY."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from file_server import wait_for
from swiftdiffusion.clients.perf.statistics import read_statistics
from wire import Picture, cancel, generate, in_line, metrics

pytestmark = pytest.mark.parametrize("tiny", ["other"], indirect=True)
FIELDS: dict[str, Any] = {"PROMPT": "a cat", "GUIDANCE_SCALE": 5.0, "HEIGHT": 128, "WIDTH": 128}
SAID = re.compile(
    r"the request would be done in (\d+) ms; TIMEOUT_MS allows (\d+) ms(?:, which is too close to be sure of)?; "
    r"(?:retry_after_ms (\d+)|it would never be)"
)


def generate_once_admitted(tiny: Any, **fields: Any) -> Picture:
    """As clients do: who is refused, since the machine is slow at this moment, comes again when told to.

    Who is admitted and then meets a machine that has slowed down comes again at once.
    """
    given_up = time.monotonic() + 60
    while True:
        try:
            return generate(tiny, tiny.model, **fields)
        except InferenceServerException as refused:
            assert time.monotonic() < given_up, refused
            if "TIMEOUT_MS passed after step" in str(refused):
                continue
            said = SAID.search(str(refused))
            assert said, refused
            assert said[3], refused
            time.sleep(int(said[3]) / 1000)


def test_who_would_be_late_is_refused_before_anything_is_done(tiny: Any) -> None:
    solos = [generate(tiny, tiny.model, **FIELDS, SEED=1, STEPS=100) for _ in range(2)]
    whole_ms = min(sum(solo.info["timings_ms"].values()) for solo in solos)
    with ThreadPoolExecutor(7) as threads:
        running = [threads.submit(generate, tiny, tiny.model, **FIELDS, SEED=seed, STEPS=100) for seed in range(7)]
        wait_for(lambda: in_line(tiny) == (0, 7))
        before = read_statistics(tiny.grpc_url)
        with pytest.raises(InferenceServerException) as caught:
            generate(tiny, tiny.model, **FIELDS, SEED=9, STEPS=100, TIMEOUT_MS=int(1.5 * whole_ms))
        assert not any(one.done() for one in running)
        done = {work.model for work in read_statistics(tiny.grpc_url).work_since(before)}
        assert not any("encoder" in model for model in done), done
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        said = SAID.search(str(caught.value))
        assert said, caught.value
        forecast, limit, retry = (int(number) for number in said.groups())
        assert forecast > limit >= whole_ms
        assert retry > 0
        assert all(one.result().info["seed"] == seed for seed, one in enumerate(running))
    late = generate_once_admitted(tiny, **FIELDS, SEED=9, STEPS=100, TIMEOUT_MS=int(6 * whole_ms))
    assert late.info["forecast_came_to_ms"] < 6 * whole_ms


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


@contextmanager
def full_batch(tiny: Any) -> Iterator[list[str]]:
    """Ids of eight large requests that take all places; at the end they are cancelled."""
    ids, large = [f"large {number}" for number in range(8)], FIELDS | {"STEPS": 200, "HEIGHT": 192, "WIDTH": 192}
    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(generate, tiny, tiny.model, **large, REQUEST_ID=each) for each in ids]
        try:
            wait_for(lambda: in_line(tiny) == (0, 8))
            yield ids
        finally:
            for each in ids:
                cancel(tiny, each)
        for one in running:
            with pytest.raises(InferenceServerException, match="was cancelled after step"):
                one.result()


def test_who_is_important_comes_first(tiny: Any) -> None:
    """Of those that wait behind a full batch, in which one place becomes free."""
    ends = list[str]()

    def ended(priority: str) -> None:
        generate(tiny, tiny.model, **FIELDS, STEPS=5, PRIORITY=priority)
        ends.append(priority)

    with full_batch(tiny) as ids, ThreadPoolExecutor(3) as threads:
        waiting = []
        for priority in ("low", "normal", "high"):
            waiting.append(threads.submit(ended, priority))
            wait_for(lambda: in_line(tiny) == (len(waiting), 8))
        assert cancel(tiny, ids[0])
        for one in waiting:
            one.result()
    assert ends == ["high", "normal", "low"]


def test_who_waits_for_a_place_is_cancelled(tiny: Any) -> None:
    with full_batch(tiny), ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(generate, tiny, tiny.model, **FIELDS, STEPS=200, REQUEST_ID="waiting")
        wait_for(lambda: in_line(tiny) == (1, 8))
        assert cancel(tiny, "waiting")
        with pytest.raises(InferenceServerException, match='"waiting" was cancelled after step 0'):
            waiting.result()
        assert in_line(tiny)[1] == 8, "nobody has made room"


def test_an_unknown_priority_is_refused(tiny: Any) -> None:
    with pytest.raises(InferenceServerException, match='PRIORITY is "urgent"; allowed: low, normal, high'):
        generate(tiny, tiny.model, PROMPT="a cat", PRIORITY="urgent")
