"""JSON bodies → typed requests, with a sentence for the first mistake."""

from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from .errors import ApiError

B = TypeVar("B", bound=BaseModel)
Number = Annotated[float, Field(allow_inf_nan=False)]

MOST_VALUES = 2_000
"""Of one body, all levels together: more make errors, and lists of them, larger than anything that is asked for."""

MOST_MARKS = 100_000
"""Commas and opening brackets of one body, those in its texts too: what has more is not even parsed, since a value of
three characters takes tens of bytes."""


async def read_body(request: Request, kind: type[B]) -> B:
    """A request's body.

    Args:
        request: Whose body is within its limit of bytes.
        kind: Of what.

    Raises:
        ApiError: If it is none.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        # Nothing else needs a browser to ask before it sends a page's request here.
        raise ApiError(415, f"Content-Type is {content_type[:80]!r}; allowed: application/json")
    body = b"".join([chunk async for chunk in request.stream()])  # `request.body` would keep it
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MOST_MARKS:
        raise ApiError(400, f"the body has more than {MOST_MARKS} commas and brackets; allowed: at most so many")
    try:
        values = from_json(body, cache_strings="keys")
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON: {str(error)[:200]}") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body is no JSON object")
    _check_count(values)
    return _validated(kind, values)


def _validated(kind: type[B], values: dict[str, Any]) -> B:
    """Checked; what is null is absent."""
    try:
        return kind.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, param = _place(first["loc"]), str(first["loc"][0])[:80] if first["loc"] else None
        match first["type"]:
            case "extra_forbidden":
                names = ", ".join(kind.model_fields)
                message = (
                    f"{place} is no field of this route; allowed: {names}"
                    if len(first["loc"]) == 1
                    else (f"{place} is no field of it")
                )
            case "missing":
                message = f"{place} is missing"
            case "value_error":
                said = str(first["ctx"]["error"])
                message = f"{place}: {said}" if first["loc"] else said
            case _:
                message = f"{place} is {_shown(first['input'])}: {first['msg']}"
        raise ApiError(400, message, param=param) from None


def _check_count(values: Any) -> None:
    seen, waiting = 0, [values]
    while waiting:
        each = waiting.pop()
        children = list(each.values()) if isinstance(each, dict) else each if isinstance(each, list) else ()
        seen += 1 + len(children)
        if seen > MOST_VALUES:
            raise ApiError(400, f"the body has more than {MOST_VALUES} values; allowed: at most so many")
        waiting += [child for child in children if isinstance(child, dict | list)]


def _place(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part[:80]}" for part in loc).lstrip(".") or "the body"


def _shown(value: object) -> str:
    """Short values alone: prompts and pictures are not repeated."""
    text = repr(value)
    return text if len(text) <= 80 else f"{type(value).__name__} of {len(text)} characters"
