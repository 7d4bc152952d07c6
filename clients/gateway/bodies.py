"""JSON bodies → typed requests, with a sentence for the first mistake."""

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar, get_args

from fastapi import Request
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails, from_json

from .errors import ApiError

B = TypeVar("B", bound=BaseModel)
Number = Annotated[float, Field(allow_inf_nan=False)]

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "bool": "true or false",
    "none": "null",
    "string": "a text",
    "bytes": "a file",
    "list": "a list",
    "tuple": "a list",
    "dict": "an object",
    "model": "an object",
}
"""Beginning of a pydantic type of error → what the value should be."""

OTHER_NAMES = {
    "steps": "num_inference_steps",
    "loras": "lora",
    "controlnets": "controlnet",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "width": "size",
    "height": "size",
    "weight": "scale",
    "num_images": "n",
    "format": "output_format",
    "response": "response_format",
}
"""What other APIs call a field."""

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
    check_marks([body])
    try:
        values = from_json(body, cache_strings="keys")
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON: {str(error)[:200]}") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body is no JSON object")
    check_count(values)
    return validated(kind, values)


def validated(kind: type[B], values: dict[str, Any], within: str = "", param: str | None = None) -> B:
    """Values of a JSON object, checked; what is null is absent.

    Args:
        kind: What they should be.
        values: By name.
        within: What stands before a mistake, for an object that is inside of others.
        param: The field that a mistake is told of; None: the one that it is in.

    Raises:
        ApiError: At the first mistake.
    """
    try:
        return kind.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = _place(first["loc"])
        param = param or (str(first["loc"][0])[:80] if first["loc"] else None)
        match first["type"]:
            case "extra_forbidden":
                message = _unknown(place, first["loc"], kind)
            case "missing":
                message = f"{place} is missing"
            case "value_error":
                said = str(first["ctx"]["error"])
                message = f"{place}: {said}" if first["loc"] else said
            case _:
                message = f"{place} is {_shown(first['input'])}; allowed: {_allowed(first)}"
        raise ApiError(400, f"{within}{message}", param=param) from None


def _unknown(place: str, loc: tuple[int | str, ...], kind: type[BaseModel]) -> str:
    """A field that there is not: those that there are where it stands, and the nearest."""
    for part in loc[:-1]:
        if isinstance(part, str) and part in kind.model_fields:
            kind = _model_in(kind.model_fields[part].annotation) or kind
    names, given = list(kind.model_fields), str(loc[-1])[:80]
    near = OTHER_NAMES.get(given) if OTHER_NAMES.get(given) in names else None
    near = near or next(iter(difflib.get_close_matches(given, names, n=1)), None)
    return f"{place} is no field of this route; allowed: {', '.join(names)}" + (
        f"; the nearest: {near}" if near else ""
    )


def _model_in(annotation: object) -> type[BaseModel] | None:
    """The model that a field holds, or a list of which."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each))), None)


def _allowed(error: ErrorDetails) -> str:
    """What a value should be."""
    context = error.get("ctx", {})
    for bound, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if bound in context:
            return f"{words} {context[bound]}"
    if "max_length" in context:
        return f"a length of at most {context['max_length']}"
    if "min_length" in context:
        return f"a length of at least {context['min_length']}"
    if "expected" in context:
        return str(context["expected"])
    return next((words for kind, words in KINDS.items() if error["type"].startswith(kind)), error["msg"])


def check_marks(contents: Iterable[bytes]) -> None:
    """Refuses JSON, all of a request together, that has more than `MOST_MARKS`."""
    if sum(content.count(mark) for content in contents for mark in (b",", b"[", b"{")) > MOST_MARKS:
        raise ApiError(400, f"the body has more than {MOST_MARKS} commas and brackets; allowed: at most so many")


def check_count(values: Any) -> None:
    """Refuses what has more than `MOST_VALUES`."""
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
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, bytes):
        return f"a file of {len(value)} bytes"
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{type(value).__name__} of {len(text)} characters"
