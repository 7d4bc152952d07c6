"""Where a request's LoRAs are, or which outcomes will say so: what `lora_store` answers at once. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import StringConstraints
from pydantic.dataclasses import dataclass as validated

from ...common.errors import InvalidRequestError, RequestError, to_report
from ...request.json_text import read_json
from .outcomes import CONFIG, LoadedLora, Milliseconds, Outcome, Outcomes, Report, Source, checked_path, to_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...request.completed import LoraUse


class Ticket:
    """One LoRA of one request: loaded, failed, or to be asked for again.

    Attributes:
        name: The LoRA's name in the catalogue.
    """

    def __init__(self, name: str, pending: Outcome | None = None, result: LoadedLora | RequestError | None = None):
        """A ticket with a result, or with the outcome that will bring one."""
        self.name = name
        self._pending, self._result = pending, result

    def poll(self) -> LoadedLora | None:
        """The loaded LoRA, or None while it is loading.

        Raises:
            RequestError: If loading failed; at every further call too.
        """
        if self._result is None and self._pending is not None:
            self._result = self._pending.take()
        if isinstance(self._result, RequestError):
            raise self._result
        return self._result

    @property
    def at_hand(self) -> LoadedLora | None:
        """The LoRA that was there when the ticket was written; an outcome is left to who asks with `poll`."""
        return self._result if isinstance(self._result, LoadedLora) else None

    @property
    def lost(self) -> bool:
        """Whether its load ended without a result, because the process that loaded it died."""
        return not self.done and self._pending is not None and self._pending.abandoned and not self.done

    @property
    def done(self) -> bool:
        """Whether `poll` gives a LoRA or raises."""
        if self._result is None and self._pending is not None:
            self._result = self._pending.take()
        return self._result is not None

    def to_entry(self) -> dict[str, object]:
        """The ticket as JSON values."""
        if isinstance(self._result, RequestError):
            return {"name": self.name, "error": to_report(self._result)}
        if self._result is not None:
            return {"name": self.name, **to_values(self._result)}
        return {"name": self.name, "outcome": None if self._pending is None else self._pending.path.name}

    def discard(self) -> None:
        """For a request that ends early: its outcome, if there is one already, need not be kept."""
        if self._pending is not None:
            self._pending.path.unlink(missing_ok=True)


def tickets_to_json(tickets: list[Ticket]) -> str:
    """The tickets of one request, as the text that travels to its denoiser."""
    return json.dumps([ticket.to_entry() for ticket in tickets])


def tickets_from_json(text: str, outcomes: Outcomes) -> list[Ticket]:
    """The tickets that `tickets_to_json` wrote.

    Raises:
        InvalidRequestError: If the text is anything else (a client called an inner model by itself).
    """
    return [_ticket(entry, outcomes) for entry in _entries(text)]


def tickets_of(uses: Sequence[LoraUse], text: str, outcomes: Outcomes) -> list[Ticket]:
    """The tickets that were written for what a request asks for.

    Raises:
        InvalidRequestError: If they were not.
    """
    tickets = tickets_from_json(text, outcomes)
    if [ticket.name for ticket in tickets] != [use.name for use in uses]:
        raise InvalidRequestError("TICKETS is not what `lora_store` writes for this REQUEST")
    return tickets


def raise_failure(text: str) -> None:
    """Raises the first failure among the tickets that `tickets_to_json` wrote; pending ones are left as they are."""
    for entry in _entries(text):
        if entry.error is not None:
            raise entry.error.as_error()


def _entries(text: str) -> list[_Entry]:
    return read_json(list[_Entry], text, "TICKETS is not what `lora_store` writes", says_where=True)


def _ticket(entry: _Entry, outcomes: Outcomes) -> Ticket:
    given = [entry.error is not None, entry.outcome is not None, entry.path is not None]
    if sum(given) != 1:
        raise InvalidRequestError("TICKETS is not what `lora_store` writes: needed is a path, an outcome or an error")
    if entry.error is not None:
        return Ticket(entry.name, result=entry.error.as_error())
    if entry.outcome is not None:
        return Ticket(entry.name, pending=outcomes.named(entry.outcome))
    if entry.path is None or entry.source is None or entry.load_ms is None:
        raise InvalidRequestError("TICKETS is not what `lora_store` writes: a path needs source and load_ms")
    path = checked_path(Path(entry.path), outcomes.host_directory)
    return Ticket(entry.name, result=LoadedLora(path, entry.source, entry.load_ms))


@validated(frozen=True, config=CONFIG)
class _Entry:
    name: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    path: str | None = None
    source: Source | None = None
    load_ms: Milliseconds | None = None
    outcome: Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")] | None = None
    error: Report | None = None
