"""Typed access to the tensors of one client request."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ..common.errors import InvalidRequestError
from ..common.sentences import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .rules import RequestRules


class Entry(BaseModel):
    """One entry of a JSON list such as LORAS."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


@dataclass(frozen=True)
class Fields:
    """The tensors of one request, read by type and checked against limits; None for an absent one."""

    tensors: Mapping[str, np.ndarray]

    def array(self, field: str) -> np.ndarray | None:
        """The tensor as it came."""
        return self.tensors.get(field)

    def text(self, field: str, most: int) -> str | None:
        """A text of at most so many characters."""
        raw = self._bytes(field, 4 * most, f"at most {most} characters")
        if raw is None:
            return None
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequestError(
                f"{field} is not UTF-8 (byte {error.start} of {len(raw)}); allowed: UTF-8 text"
            ) from None
        if len(text) > most:
            raise InvalidRequestError(f"{field} has {len(text)} characters; allowed: at most {most}")
        if "\0" in text:
            raise InvalidRequestError(f"{field} holds a NUL character; allowed: text without it")
        return text

    def request_id(self) -> str | None:
        """REQUEST_ID."""
        text = self.text("REQUEST_ID", 256)
        if text == "":
            raise InvalidRequestError('REQUEST_ID is ""; allowed: 1 to 256 characters')
        return text

    def integer(self, field: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`."""
        value = self._scalar(field)
        if value is None:
            return None
        if not low <= int(value) <= high:
            raise InvalidRequestError(f"{field} is {int(value)}; allowed: {low} to {high}")
        return int(value)

    def content(self, field: str, most: int) -> bytes | None:
        """Bytes, at most so many."""
        return self._bytes(field, most, f"at most {most} bytes")

    def number(self, field: str, low: float, high: float, allowed: str | None = None) -> float | None:
        """A finite number from `low` to `high`; of a narrower float the shortest decimal that it stands for.

        (A client that writes 0.7 means 0.7, and not 0.699999988: ten steps of that are six.)
        """
        value = self._scalar(field)
        if value is None:
            return None
        if not math.isfinite(value) or not low <= value <= high:
            raise InvalidRequestError(f"{field} is {float(value):g}; allowed: {allowed or f'{low:g} to {high:g}'}")
        return float(str(value))

    def boolean(self, field: str) -> bool | None:
        """True or false."""
        value = self._scalar(field)
        return None if value is None else bool(value)

    def size(self, field: str, rules: RequestRules) -> int | None:
        """A height or width in pixels."""
        value = self._scalar(field)
        if value is None:
            return None
        multiple, most = rules.size_multiple, rules.max_size
        if not multiple <= value <= most or value % multiple:
            raise InvalidRequestError(
                f"{field} is {int(value)}; allowed: multiples of {multiple} from {multiple} to {most}"
            )
        return int(value)

    def entries(self, field: str, kind: type[Entry], most: int) -> list[Any]:
        """A JSON list of entries, at most so many bytes long; empty where the field is absent."""
        raw = self._bytes(field, most, f"at most {most} bytes")
        if raw is None:
            return []
        defaults = {name: "…" if info.is_required() else info.default for name, info in kind.model_fields.items()}
        example = {name: value for name, value in defaults.items() if value is not None}
        try:
            return TypeAdapter(list[kind]).validate_json(raw)  # type: ignore[valid-type]
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            given = first.get("input")
            given = shown(given.decode("utf-8", "replace") if isinstance(given, bytes) else given)
            said = "is missing" if first["type"] == "missing" else f"is {given}: {first['msg']}"
            raise InvalidRequestError(
                f"{field}{place} {said}; allowed: {json.dumps([example], ensure_ascii=False)}"
            ) from None

    def _bytes(self, field: str, most: int, allowed: str) -> bytes | None:
        value = self._scalar(field)
        if value is None:
            return None
        raw = value if isinstance(value, bytes) else str(value).encode("utf-8")
        if len(raw) > most:
            raise InvalidRequestError(f"{field} has {len(raw)} bytes; allowed: {allowed}")
        return raw

    def _scalar(self, field: str) -> Any:
        array = self.array(field)
        if array is None:
            return None
        if array.size != 1:
            raise InvalidRequestError(f"{field} has {array.size} values; allowed: one")
        return array.reshape(-1)[0]
