"""How the result of a load travels from `lora_store` to a denoiser."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from swiftdiffusion.python_backends.common.errors import InvalidRequestError, UnexpectedError, all_types
from swiftdiffusion.python_backends.lora.loading.outcomes import FORGOTTEN_AFTER_S, WRITER_SUFFIX, LoadedLora, Outcomes
from swiftdiffusion.python_backends.lora.loading.tickets import (
    Ticket,
    raise_failure,
    tickets_from_json,
    tickets_to_json,
)


@pytest.fixture
def outcomes(tmp_path: Path) -> Outcomes:
    return Outcomes(tmp_path / "host", tmp_path / "loads")


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedLora:
    return LoadedLora(tmp_path / "host" / "abc.safetensors", "remote", 12.5)


def left(outcomes: Outcomes) -> list[Path]:
    """Outcomes that are still there."""
    return [file for file in outcomes.directory.iterdir() if file.suffix != WRITER_SUFFIX]


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
    assert left(outcomes) == []


def test_a_failure_keeps_its_type_and_message(outcomes: Outcomes) -> None:
    outcome = outcomes.expect()
    ticket = Ticket("papercut", pending=outcome)
    outcome.put(InvalidRequestError('LORAS names "papercut": no module'))
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match='LORAS names "papercut": no module'):
            ticket.poll()
    written = tickets_to_json([Ticket("night", pending=outcomes.expect()), ticket])
    with pytest.raises(InvalidRequestError, match='LORAS names "papercut": no module'):
        raise_failure(written)
    with pytest.raises(InvalidRequestError, match='LORAS names "papercut": no module'):
        tickets_from_json(written, outcomes)[1].poll()


def test_looking_for_failures_takes_no_outcome(outcomes: Outcomes, loaded: LoadedLora) -> None:
    outcome = outcomes.expect()
    written = tickets_to_json([Ticket("papercut", pending=outcome)])
    outcome.put(UnexpectedError("later"))
    raise_failure(written)
    [ticket] = tickets_from_json(written, outcomes)
    with pytest.raises(UnexpectedError, match="later"):
        ticket.poll()


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
        {"path": None, "error": {"type": "RequestError"}},
        {"error": {"type": "RequestError", "message": "both"}},
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
    past = time.time() - FORGOTTEN_AFTER_S - 1
    for file in outcomes.directory.iterdir():
        os.utime(file, (past, past))
    outcomes.expect()
    assert left(outcomes) == []


def test_a_request_that_ends_early_takes_its_outcome_along(outcomes: Outcomes, loaded: LoadedLora) -> None:
    outcome = outcomes.expect()
    outcome.put(loaded)
    Ticket("papercut", pending=outcome).discard()
    assert left(outcomes) == []


def test_a_load_is_lost_when_its_process_is_gone(outcomes: Outcomes, loaded: LoadedLora) -> None:
    store = Outcomes(outcomes.host_directory, outcomes.directory)
    written, unwritten = store.expect(), store.expect()
    reader = tickets_from_json(
        tickets_to_json([Ticket("papercut", pending=written), Ticket("night", pending=unwritten)]), outcomes
    )
    assert [ticket.lost for ticket in reader] == [False, False]
    written.put(loaded)
    store.close()
    assert [ticket.lost for ticket in reader] == [False, True]
    assert reader[0].poll() == loaded


def test_every_error_type_survives(outcomes: Outcomes) -> None:
    for error_type in all_types():
        outcome = outcomes.expect()
        outcome.put(error_type("sentence"))
        with pytest.raises(error_type) as error:
            Ticket("papercut", pending=outcome).poll()
        assert str(error.value) == "sentence"
