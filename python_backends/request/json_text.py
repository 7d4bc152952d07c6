"""Texts that models write for each other, read with types."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ..common.errors import InvalidRequestError
from ..common.sentences import misread

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)
"""Of a type; building one takes milliseconds."""


def read_json(kind: type[T], text: str, wrong: str, *, says_where: bool = False) -> T:
    """What another model wrote.

    Args:
        kind: Of what.
        text: The JSON.
        wrong: Told of any other text (a client called an inner model by itself).
        says_where: Whether the first mistake is told too.

    Raises:
        InvalidRequestError: If it is another text.
    """
    try:
        return adapter(kind).validate_json(text)
    except ValidationError as error:
        raise InvalidRequestError(f"{wrong}: {misread(error)}" if says_where else wrong) from None
