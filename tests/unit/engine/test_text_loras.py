"""LoRAs with parts for the text encoders: a prompt's embeddings are of the LoRAs that are on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_requests import KEYS, STEPS, Models, Store, use
from swiftdiffusion.python_backends.common.errors import LoraUnavailableError
from swiftdiffusion.python_backends.engine.lora_run import text_set
from swiftdiffusion.python_backends.engine.request_loras import RequestLoras
from swiftdiffusion.python_backends.lora.loading.tickets import Ticket


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


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
