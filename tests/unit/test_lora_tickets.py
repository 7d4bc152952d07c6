"""How the result of a load travels from `lora_store` to a denoiser."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from swiftdiffusion.python_backends.errors import InvalidRequestError, RequestError, UnexpectedError
from swiftdiffusion.python_backends.lora import tickets
from swiftdiffusion.python_backends.lora.tickets import (
    LoadedLora,
    Outcomes,
    Ticket,
    tickets_from_json,
    tickets_to_json,
)


@pytest.fixture
def outcomes(tmp_path: Path) -> Outcomes:
    return Outcomes(tmp_path / "host", tmp_path / "loads")


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedLora:
    return LoadedLora(tmp_path / "host" / "abc.safetensors", "remote", 12.5)


def test_a_loaded_lora_travels_in_its_ticket(outcomes: Outcomes, loaded: LoadedLora) -> None:
    [ticket] = tickets_from_json(tickets_to_json([Ticket("papercut", result=loaded)]), outcomes)
    assert ticket.name == "papercut"
    assert ticket.done
    assert ticket.poll() == loaded


def test_a_loading_lora_arrives_later_and_leaves_no_file(outcomes: Outcomes, loaded: LoadedLora) -> None:
    outcome = outcomes.expect()
    [ticket] = tickets_from_json(tickets_to_json([Ticket("papercut", pending=outcome)]), outcomes)
    assert ticket.poll() is None
    assert not ticket.done
    outcome.put(loaded)
    assert ticket.poll() == loaded
    assert ticket.poll() == loaded
    assert list(outcomes.directory.iterdir()) == []


def test_a_failure_keeps_its_type_and_message(outcomes: Outcomes) -> None:
    outcome = outcomes.expect()
    ticket = Ticket("papercut", pending=outcome)
    outcome.put(InvalidRequestError('LORAS names "papercut": no module'))
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match='LORAS names "papercut": no module'):
            ticket.poll()
    with pytest.raises(InvalidRequestError):
        tickets_to_json([ticket])


def test_several_tickets_keep_their_order(outcomes: Outcomes, loaded: LoadedLora) -> None:
    sent = [Ticket("b", result=loaded), Ticket("a", pending=outcomes.expect()), Ticket("c", result=loaded)]
    assert [ticket.name for ticket in tickets_from_json(tickets_to_json(sent), outcomes)] == ["b", "a", "c"]
    assert tickets_from_json("[]", outcomes) == []


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/etc/passwd.safetensors"},
        {"path": "HOST/../x.safetensors"},
        {"path": "HOST/sub/x.safetensors"},
        {"path": "HOST/writer.lock"},
        {"path": None},
        {"source": "elsewhere"},
        {"load_ms": -1.0},
        {"load_ms": "1"},
        {"outcome": "0" * 32},
        {"path": None, "outcome": "../../etc/passwd"},
        {"path": None, "outcome": "0" * 31 + "\n"},
        {"more": 1},
        {"name": ""},
    ],
)
def test_what_a_hostile_client_writes_is_refused(
    outcomes: Outcomes, loaded: LoadedLora, change: dict[str, object]
) -> None:
    [entry] = json.loads(tickets_to_json([Ticket("papercut", result=loaded)]))
    if isinstance(change.get("path"), str):
        change = {**change, "path": str(change["path"]).replace("HOST", str(outcomes.host_directory))}
    with pytest.raises(InvalidRequestError, match="TICKETS is not what `lora_store` writes"):
        tickets_from_json(json.dumps([entry | change]), outcomes)


@pytest.mark.parametrize("text", ["", "{}", "null", "[1]", '[{"name": "x"}]', "[" * 10_000])
def test_what_is_no_list_of_tickets_is_refused(outcomes: Outcomes, text: str) -> None:
    with pytest.raises(InvalidRequestError):
        tickets_from_json(text, outcomes)


def test_an_outcome_that_is_not_readable_is_an_error(outcomes: Outcomes) -> None:
    outcome = outcomes.expect()
    outcome.path.write_text('{"path": "/etc/passwd", "source": "host", "load_ms": 1.0}')
    with pytest.raises(UnexpectedError):
        Ticket("papercut", pending=outcome).poll()


def test_outcomes_that_nobody_read_do_not_pile_up(outcomes: Outcomes, loaded: LoadedLora) -> None:
    for _ in range(20):
        outcomes.expect().put(loaded)
    past = time.time() - tickets.FORGOTTEN_AFTER_S - 1
    for file in outcomes.directory.iterdir():
        os.utime(file, (past, past))
    outcomes.expect()
    assert list(outcomes.directory.iterdir()) == []


def test_a_request_that_ends_early_takes_its_outcome_along(outcomes: Outcomes, loaded: LoadedLora) -> None:
    outcome = outcomes.expect()
    outcome.put(loaded)
    Ticket("papercut", pending=outcome).discard()
    assert list(outcomes.directory.iterdir()) == []


def test_every_error_type_survives(outcomes: Outcomes) -> None:
    for error_type in RequestError.__subclasses__():
        outcome = outcomes.expect()
        outcome.put(error_type("sentence"))
        with pytest.raises(error_type) as error:
            Ticket("papercut", pending=outcome).poll()
        assert str(error.value) == "sentence"
