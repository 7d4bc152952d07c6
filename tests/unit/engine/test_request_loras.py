"""Bounded asynchronous loading: when a request's LoRAs go on, when it waits, what it reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_requests import KEYS, STEPS, Models, Store, use
from swiftdiffusion.python_backends.common.errors import InvalidRequestError, LoraUnavailableError, RequestError
from swiftdiffusion.python_backends.engine.request_loras import RequestLoras
from swiftdiffusion.python_backends.lora.loading.tickets import Ticket
from swiftdiffusion.python_backends.shared_memory.host_cache import HostCache


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def entry(report: list[dict[str, Any]]) -> dict[str, Any]:
    (only,) = report
    return only


def test_a_lora_that_is_there_goes_on_at_once_and_is_exact(store: Store) -> None:
    loras = RequestLoras([use(bound=5)], [Ticket("unet", result=store.loaded("unet", "host"))], Models())
    assert loras.advance(0, STEPS) == (True, None)
    assert loras.current == ((KEYS["unet"], 1.0),)
    loras.note_patch(0, 3.0)
    report = entry(loras.report())
    assert (report["patched_at_step"], report["source"], report["patch_ms"], report["modules"]) == (0, "host", 3.0, 1)
    assert report["notes"] == ["alpha = rank was assumed"]
    loras.close()


def test_one_that_is_resident_came_from_the_gpu(store: Store) -> None:
    loras = RequestLoras([use()], [Ticket("unet", result=store.loaded("unet", "host"))], Models())
    loras.advance(0, STEPS)
    loras.note_patch(0, 0.0)
    assert entry(loras.report())["source"] == "gpu"


@given(bound=st.integers(0, STEPS + 5), ready_at=st.integers(0, 3 * STEPS), ahead=st.booleans())
@settings(max_examples=60)
def test_it_goes_on_as_soon_as_it_is_ready_and_never_after_its_bound(
    tmp_path_factory: pytest.TempPathFactory, bound: int, ready_at: int, ahead: bool
) -> None:
    """`ready_at` counts step boundaries, those at which the request waits included.

    With uploads ahead, one that arrives during the run is announced for a step, unless that would be beyond its bound.
    """
    store = Store(tmp_path_factory.mktemp("store"))
    ticket, outcome = store.pending("unet")
    loras = RequestLoras([use(bound=bound)], [ticket], Models(), uploads_ahead=ahead)
    step = boundary = 0
    ran_without = []
    announced = []
    while step < STEPS:
        if boundary == ready_at:
            outcome.put(store.loaded("unet"))
        may_step, _ = loras.advance(step, STEPS)
        if may_step:
            ran_without.append(not loras.current)
            announced += [step] * bool(loras.ahead)
            step += 1
        boundary += 1
        assert boundary <= STEPS + ready_at + 1
    limit = min(bound, STEPS - 1)
    is_announced = ahead and 0 < ready_at < limit
    patched = min(limit, ready_at) + is_announced
    assert ran_without == [number < patched for number in range(STEPS)]
    assert announced == [ready_at] * is_announced
    assert entry(loras.report())["patched_at_step"] == patched
    loras.close()


@pytest.mark.parametrize("late", [False, True])
def test_a_patch_step_is_kept_whether_the_lora_is_early_or_late(store: Store, late: bool) -> None:
    ticket, outcome = store.pending("unet")
    loras = RequestLoras([use(bound=0, patch_step=3)], [ticket], Models())
    if not late:
        outcome.put(store.loaded("unet"))
    assert [loras.advance(step, STEPS)[0] for step in range(3)] == [True] * 3
    assert loras.current == ()
    if late:
        assert not loras.advance(3, STEPS)[0]
        outcome.put(store.loaded("unet"))
    assert loras.advance(3, STEPS)[0] and loras.current
    assert entry(loras.report())["patched_at_step"] == 3


def test_the_next_change_is_the_first_bound_or_patch_step_of_those_that_are_not_on(store: Store) -> None:
    tickets = [store.pending("unet")[0] for _ in range(3)]
    loras = RequestLoras([use(bound=5), use(patch_step=3), use(bound=STEPS + 5)], tickets, Models())
    steps = 12
    assert [loras.next_change(step, steps) for step in (0, 2, 3, 5, 11)] == [3, 3, 5, 11, 12]
    at_once = RequestLoras([use()], [Ticket("unet", result=store.loaded("unet"))], Models())
    at_once.advance(0, STEPS)
    assert at_once.next_change(0, STEPS) == STEPS
    at_once.close()


def test_a_patch_step_beyond_the_run_is_refused(store: Store) -> None:
    loras = RequestLoras([use(patch_step=STEPS)], [Ticket("unet", result=store.loaded("unet"))], Models())
    with pytest.raises(InvalidRequestError, match=f"is {STEPS}; allowed: 0 to {STEPS - 1}"):
        loras.check_patch_steps(STEPS)
    loras.check_patch_steps(STEPS + 1)


def test_a_failed_load_ends_the_request_before_its_bound(store: Store) -> None:
    ticket, outcome = store.pending("unet")
    loras = RequestLoras([use(bound=9)], [ticket], Models())
    assert loras.advance(0, STEPS)[0]
    outcome.put(LoraUnavailableError('LORAS names "unet": 404'))
    with pytest.raises(LoraUnavailableError, match="404"):
        loras.advance(1, STEPS)


def test_waiting_has_an_end(store: Store) -> None:
    now = [0.0]
    ticket, _ = store.pending("unet")
    loras = RequestLoras([use()], [ticket], Models(), timeout_s=30, clock=lambda: now[0])
    for now[0] in (0.0, 10.0, 29.0):
        assert not loras.advance(0, STEPS)[0]
    now[0] = 31.0
    with pytest.raises(RequestError, match='"unet", not loaded within 30 s'):
        loras.advance(0, STEPS)


def test_waiting_is_counted_only_at_the_bound(store: Store) -> None:
    now = [0.0]
    ticket, outcome = store.pending("unet")
    loras = RequestLoras([use(bound=1)], [ticket], Models(), clock=lambda: now[0])
    loras.advance(0, STEPS)
    now[0] = 5.0
    assert not loras.advance(1, STEPS)[0]
    now[0] = 7.0
    outcome.put(store.loaded("unet"))
    assert loras.advance(1, STEPS)[0]
    assert entry(loras.report())["waited_ms"] == 2000.0


def test_a_lora_evicted_before_its_lease_is_loaded_again(store: Store) -> None:
    models = Models()
    loras = RequestLoras([use()], [Ticket("unet", result=store.loaded("unet", "host"))], models)
    store.evict("unet")
    assert not loras.advance(0, STEPS)[0]
    assert not loras.advance(0, STEPS)[0]
    (reload,) = models.reloads
    store.write()
    reload.set_result(Ticket("unet", result=store.loaded("unet", "disk")))
    assert loras.advance(0, STEPS)[0]
    assert entry(loras.report())["source"] == "disk"


def test_a_lora_whose_loader_died_is_loaded_again_but_not_for_ever(store: Store) -> None:
    models = Models()
    loras = RequestLoras([use()], [store.pending("unet")[0]], models)
    assert not loras.advance(0, STEPS)[0]
    for deaths in range(1, 3):
        store.outcomes.close()
        assert not loras.advance(0, STEPS)[0]
        assert len(models.reloads) == deaths
        models.reloads[-1].set_result(store.pending("unet")[0])
        assert not loras.advance(0, STEPS)[0]
    store.outcomes.close()
    with pytest.raises(LoraUnavailableError, match=r'LORAS names "unet": .* died, 3 times'):
        loras.advance(0, STEPS)


def test_running_requests_keep_their_loras_in_the_cache(store: Store) -> None:
    loras = RequestLoras([use()], [Ticket("unet", result=store.loaded("unet"))], Models())
    loras.advance(0, STEPS)
    small = HostCache(store.cache.directory, 3000, wait_s=0.0)
    with small.reserve(2000):
        assert store.loaded("unet").path.exists()
        assert not store.loaded("text").path.exists()
    loras.close()
    with small.reserve(2900):
        assert not store.loaded("unet").path.exists()


def test_one_content_under_two_names_counts_twice(store: Store) -> None:
    tickets = [Ticket(name, result=store.loaded("unet")) for name in ("one", "two")]
    loras = RequestLoras([use("one", scale=0.5), use("two", scale=0.25)], tickets, Models())
    loras.advance(0, STEPS)
    assert loras.current == ((KEYS["unet"], 0.75),)
