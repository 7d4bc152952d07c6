"""Forms with files, as OpenAI's route for edits takes them, checked like JSON bodies."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin

from fastapi import Request
from pydantic import BaseModel
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from .bodies import check_count, check_marks, validated
from .errors import ApiError

B = TypeVar("B", bound=BaseModel)
FORM = "multipart/form-data"
MOST_FILES, MOST_PARTS = 8, 100
"""Of one form: files, and files and fields together."""


@dataclass
class _Part:
    """A file, or a field of text."""

    name: str = ""
    file_name: str | None = None
    pieces: list[memoryview] = field(default_factory=list)

    @property
    def content(self) -> bytes:
        return b"".join(self.pieces)


async def read_form(request: Request, kind: type[B]) -> B:
    """A request's form: files as bytes, numbers and lists as JSON writes them; a list may come in several parts.

    Args:
        request: Whose body is within its limit of bytes.
        kind: Of what.

    Raises:
        ApiError: If it is none.
    """
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    if content_type.decode("latin-1") != FORM:
        raise ApiError(415, f"Content-Type is {content_type.decode('latin-1')[:80]!r}; allowed: {FORM}")
    body = b"".join([chunk async for chunk in request.stream()])
    return await asyncio.to_thread(_read, body, options.get(b"boundary", b""), kind)


def _read(body: bytes, boundary: bytes, kind: type[B]) -> B:
    values: dict[str, Any] = {}
    parts = [part for part in _parts(body, boundary) if part.pieces or part.file_name != ""]  # of no file chosen
    check_marks([part.content for part in parts if part.file_name is None and not _is_text(kind, part.name)])
    for part in parts:
        value: Any = part.content if part.file_name is not None else _value(kind, part.name, part.content)
        if part.name not in values:
            values[part.name] = value
        elif _is_list(kind, part.name):
            before = values[part.name]
            values[part.name] = [*(before if isinstance(before, list) else [before]), value]
        else:
            raise ApiError(400, f"{part.name[:80]} is there twice; allowed: once", param=part.name[:80])
    check_count(values)
    return validated(kind, values)


def _parts(body: bytes, boundary: bytes) -> list[_Part]:
    """A form's, their names without the brackets that say that there may be several.

    Raises:
        ApiError: If it is no form, or has too many.
    """
    if not boundary:
        raise ApiError(400, f"Content-Type has no boundary; allowed: {FORM}; boundary=…")
    told = _Told(body)
    try:
        parser = MultipartParser(boundary, told.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise ApiError(400, f"the body is no form: {str(error)[:200]}") from None
    if not told.ended:
        raise ApiError(400, "the body is no form: it breaks off")
    return told.parts


class _Told:
    """What the parser tells of a body."""

    def __init__(self, body: bytes) -> None:
        self.parts: list[_Part] = []
        self.ended = False
        self._body, self._files = memoryview(body), 0
        self._header, self._value = b"", b""

    def callbacks(self) -> dict[str, Any]:
        """As the parser wants them."""
        names = "part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end"
        return {f"on_{name}": getattr(self, f"_{name}") for name in names}

    def _part_begin(self) -> None:
        if len(self.parts) == MOST_PARTS:
            raise ApiError(400, f"the form has more than {MOST_PARTS} parts; allowed: at most so many")
        self.parts.append(_Part())

    def _header_field(self, body: bytes, start: int, end: int) -> None:
        self._header += body[start:end]

    def _header_value(self, body: bytes, start: int, end: int) -> None:
        self._value += body[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            part = self.parts[-1]
            part.name = _decoded(options.get(b"name", b""), "the name of a part").removesuffix("[]")
            if b"filename" in options:
                part.file_name = options[b"filename"].decode("latin-1")
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        part = self.parts[-1]
        if not part.name:
            raise ApiError(400, "a part of the form has no name; allowed: Content-Disposition: form-data; name=…")
        if "[" in part.name:
            name = part.name.partition("[")[0][:80]
            raise ApiError(400, f"{part.name[:80]} is a part of {name}; allowed: {name} whole, as JSON", param=name)
        self._files += part.file_name is not None
        if self._files > MOST_FILES:
            raise ApiError(400, f"the form has more than {MOST_FILES} files; allowed: at most so many")

    def _part_data(self, _body: bytes, start: int, end: int) -> None:
        if end > start:
            self.parts[-1].pieces.append(self._body[start:end])

    def _end(self) -> None:
        self.ended = True


def _value(kind: type[BaseModel], name: str, content: bytes) -> Any:
    """What a field of text stands for; what is no JSON is left to who checks it."""
    text = _decoded(content, name[:80])
    if _is_text(kind, name):
        return text
    try:
        return from_json(text)
    except ValueError:
        return text


def _decoded(content: bytes, what: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ApiError(400, f"{what} is no UTF-8; allowed: UTF-8") from None


def _is_list(kind: type[BaseModel], name: str) -> bool:
    field = kind.model_fields.get(name)
    return field is not None and get_origin(field.annotation) is tuple


def _is_text(kind: type[BaseModel], name: str) -> bool:
    """Whether a field is taken as it stands: a text, or a file, or one that there is not."""
    field = kind.model_fields.get(name)
    return field is None or _is_of_text(field.annotation)


def _is_of_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(each, str) for each in get_args(annotation))
    members = () if get_origin(annotation) in (tuple, list, dict) else get_args(annotation)
    return annotation in (str, bytes) or any(map(_is_of_text, members))
