"""Forms with files, as OpenAI's route for edits takes them, checked like JSON bodies."""

import json
from typing import Any, Literal, TypeVar, get_args, get_origin

from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from .bodies import validated
from .errors import ApiError

B = TypeVar("B", bound=BaseModel)
FORM = "multipart/form-data"
MOST_FILES, MOST_FIELDS, MOST_TEXT = 8, 100, 64 * 2**20
"""Of one form; a field of text may be a list of ControlNets with their pictures."""


async def read_form(request: Request, kind: type[B]) -> B:
    """A request's form: files as bytes, numbers and lists as JSON writes them.

    Args:
        request: Whose body is within its limit of bytes.
        kind: Of what.

    Raises:
        ApiError: If it is none.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != FORM:
        raise ApiError(415, f"Content-Type is {content_type[:80]!r}; allowed: {FORM}")
    values: dict[str, Any] = {}
    try:
        async with request.form(max_files=MOST_FILES, max_fields=MOST_FIELDS, max_part_size=MOST_TEXT) as form:
            for key, part in form.multi_items():
                name = key.removesuffix("[]")
                if name in values:
                    raise ApiError(400, f"{name[:80]} is there twice; allowed: once", param=name[:80])
                values[name] = await part.read() if isinstance(part, UploadFile) else _value(kind, name, part)
    except (HTTPException, MultiPartException) as error:
        said = str(getattr(error, "detail", None) or getattr(error, "message", ""))[:200]
        raise ApiError(400, f"the body is no form: {said}") from None
    return validated(kind, values)


def _value(kind: type[BaseModel], name: str, text: str) -> Any:
    """What a field of text stands for; what is no JSON is left to who checks it."""
    field = kind.model_fields.get(name)
    if field is None or _is_text(field.annotation):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(each, str) for each in get_args(annotation))
    return annotation is str or (annotation is not tuple and any(map(_is_text, _members(annotation))))


def _members(annotation: Any) -> tuple[Any, ...]:
    """Of a union; no others."""
    return () if get_origin(annotation) in (tuple, list, dict) else get_args(annotation)
