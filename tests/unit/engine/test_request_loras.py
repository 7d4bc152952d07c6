"""Bounded asynchronous loading: when a request's LoRAs go on, when it waits, what it reports."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftdiffusion.python_backends.common.errors import InvalidRequestError, LoraUnavailableError, RequestError
from swiftdiffusion.python_backends.engine.lora_run import LoraRun, set_of, text_set
from swiftdiffusion.python_backends.engine.request_loras import RequestLoras
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora, Group
from swiftdiffusion.python_backends.lora.files.lora_set import LoraSet
from swiftdiffusion.python_backends.lora.loading.outcomes import LoadedLora, Outcome, Outcomes
from swiftdiffusion.python_backends.lora.loading.tickets import Ticket
from swiftdiffusion.python_backends.networks.kept_embeddings import Embeddings
from swiftdiffusion.python_backends.request.completed import LoraUse
from swiftdiffusion.python_backends.shared_memory.host_cache import HostCache

STEPS = 10
KEYS = {"unet": "a" * 64, "text": "b" * 64}


class Store:
    """A host cache with two LoRAs, one of them for the text encoder too, and outcomes to be written by hand."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.cache = HostCache(directory / "host", 2**20)
        (directory / "loads").mkdir(exist_ok=True)
        self.outcomes = Outcomes(self.cache.directory, directory / "loads")
        self.write()

    def write(self) -> None:
        for name, key in KEYS.items():
            components = ("unet", "text_encoder") if name == "text" else ("unet",)
            groups = tuple(
                Group(part, "low_rank", ("m",), (1.0,), {"up": torch.ones(1, 4, 2), "down": torch.ones(1, 2, 4)})
                for part in components
            )
            with self.cache.reserve(1000) as reservation:
                CanonicalLora(groups, ("alpha = rank was assumed",)).save(reservation.path)
                reservation.publish(key)

    def evict(self, name: str) -> None:
        (self.cache.directory / f"{KEYS[name]}.safetensors").unlink()

    def loaded(self, name: str, source: str = "disk") -> LoadedLora:
        return LoadedLora(self.cache.directory / f"{KEYS[name]}.safetensors", source, 12.5)

    def pending(self, name: str) -> tuple[Ticket, Outcome]:
        outcome = self.outcomes.expect()
        return Ticket(name, pending=outcome), outcome


class Models:
    """The other models, answering when told to."""

    def __init__(self) -> None:
        self.encodings: list[tuple[LoraSet, Future[Embeddings]]] = []
        self.reloads: list[Future[Ticket]] = []

    def encode(self, loras: Sequence[LoraRun]) -> Future[Embeddings]:
        self.encodings.append((set_of(loras), Future()))
        return self.encodings[-1][1]

    def load_again(self, position: int) -> Future[Ticket]:
        self.reloads.append(Future())
        return self.reloads[-1]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def use(name: str = "unet", bound: int = 0, patch_step: int | None = None, scale: float = 1.0) -> LoraUse:
    return LoraUse(name, scale, bound, patch_step)


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
@settings(max_examples=60, deadline=None)
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


def test_a_patch_step_beyond_the_run_is_refused(store: Store) -> None:
    loras = RequestLoras([use(patch_step=STEPS)], [Ticket("unet", result=store.loaded("unet"))], Models())
    with pytest.raises(InvalidRequestError, match=f"is {STEPS}; allowed: 0 to {STEPS - 1}"):
        loras.check_patch_steps(STEPS)
    loras.check_patch_steps(STEPS + 1)


def test_text_parts_go_on_once_the_prompt_is_encoded_with_them(store: Store) -> None:
    models = Models()
    tickets = [Ticket(name, result=store.loaded(name)) for name in ("unet", "text")]
    loras = RequestLoras([use("unet", bound=4), use("text", bound=2, scale=0.5)], tickets, models)
    assert loras.advance(0, STEPS) == (False, None), "it is there: exact, for any bound"
    assert loras.current == ((KEYS["unet"], 1.0),)
    ((asked, future),) = models.encodings
    assert asked == ((KEYS["text"], 0.5),)
    embeddings = (torch.ones(2, 3), None)
    future.set_result(embeddings)
    assert loras.advance(0, STEPS) == (True, embeddings)
    assert loras.current == ((KEYS["unet"], 1.0), (KEYS["text"], 0.5))
    assert loras.advance(1, STEPS) == (True, None)


def test_text_parts_that_are_at_hand_are_encoded_at_once(store: Store) -> None:
    models = Models()
    uses = [use("unet"), use("text", scale=0.5), use("more", scale=0.25), use("later", patch_step=2)]
    tickets = [Ticket(each.name, result=store.loaded("unet" if each.name == "unet" else "text")) for each in uses]
    encoded = text_set(uses, tickets)
    assert encoded == ((KEYS["text"], 0.75),)
    loras = RequestLoras(uses, tickets, models, encoded)
    assert loras.advance(0, STEPS) == (True, None)
    assert loras.current == ((KEYS["unet"], 1.0), (KEYS["text"], 0.75))
    assert not models.encodings
    assert loras.advance(2, STEPS) == (False, None)
    assert [each for each, _ in models.encodings] == [((KEYS["text"], 1.75),)]


def test_what_is_not_at_hand_is_not_encoded_and_its_outcome_is_left(store: Store) -> None:
    pending, outcome = store.pending("text")
    outcome.put(store.loaded("text"))
    assert text_set([use("text")], [pending]) == ()
    assert pending.poll() == store.loaded("text")
    failed = Ticket("text", result=LoraUnavailableError("gone"))
    evicted = Ticket("text", result=store.loaded("text"))
    store.evict("text")
    assert text_set([use("text")] * 2, [failed, evicted]) == ()


def evicted_after_encoding(store: Store, models: Models, bound: int) -> RequestLoras:
    """Of a request whose prompts are encoded with a LoRA that is gone before it is leased."""
    tickets = [Ticket("text", result=store.loaded("text"))]
    encoded = text_set([use("text")], tickets)
    store.evict("text")
    return RequestLoras([use("text", bound=bound)], tickets, models, encoded)


def test_embeddings_with_a_lora_that_is_gone_are_made_anew_before_the_first_step(store: Store) -> None:
    models, embeddings = Models(), [(torch.full((2, 3), float(number)), None) for number in range(2)]
    loras = evicted_after_encoding(store, models, bound=5)
    assert loras.advance(0, STEPS) == (False, None)
    models.encodings[0][1].set_result(embeddings[0])
    assert loras.advance(0, STEPS) == (True, embeddings[0])
    assert loras.current == ()
    store.write()
    models.reloads[0].set_result(Ticket("text", result=store.loaded("text")))
    assert loras.advance(1, STEPS) == (True, None)
    models.encodings[1][1].set_result(embeddings[1])
    assert loras.advance(2, STEPS) == (True, embeddings[1])
    assert [each for each, _ in models.encodings] == [(), loras.current]


def test_one_that_comes_back_before_that_goes_on_with_the_embeddings_that_there_are(store: Store) -> None:
    models = Models()
    loras = evicted_after_encoding(store, models, bound=0)
    assert loras.advance(0, STEPS) == (False, None)
    store.write()
    models.reloads[0].set_result(Ticket("text", result=store.loaded("text")))
    assert loras.advance(0, STEPS) == (True, None)
    assert loras.current == ((KEYS["text"], 1.0),)
    assert loras.advance(1, STEPS) == (True, None)


def test_one_that_comes_back_as_another_has_the_embeddings_made_anew(store: Store) -> None:
    """Its file was replaced, by one that does not adapt the text encoders."""
    models, embeddings = Models(), (torch.ones(2, 3), None)
    loras = evicted_after_encoding(store, models, bound=0)
    assert loras.advance(0, STEPS) == (False, None)
    models.reloads[0].set_result(Ticket("text", result=store.loaded("unet")))
    assert loras.advance(0, STEPS) == (False, None)
    models.encodings[0][1].set_result(embeddings)
    assert loras.advance(0, STEPS) == (True, embeddings)
    assert loras.current == ((KEYS["unet"], 1.0),)


def test_text_parts_that_come_late_are_encoded_while_steps_run(store: Store) -> None:
    models = Models()
    ticket, outcome = store.pending("text")
    loras = RequestLoras([use("text", bound=2)], [ticket], models)
    assert loras.advance(0, STEPS) == (True, None)
    outcome.put(store.loaded("text"))
    assert loras.advance(1, STEPS) == (True, None)
    assert loras.advance(2, STEPS) == (False, None)
    models.encodings[0][1].set_result((torch.ones(2, 3), None))
    assert loras.advance(2, STEPS)[0] and loras.current


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
