"""Values as error messages show them. Needs no torch."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import ValidationError

MIB = 2**20


def shown(value: object, most: int = 150) -> str:
    """A value as JSON, cut to a length that fits a sentence."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def mib(size: int) -> str:
    """A number of bytes in MiB."""
    return f"{size / MIB:.1f} MiB"


def first_sentence(error: Exception) -> str:
    """Of what a library raises: without line breaks, advice and its full stop."""
    return " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__


def misread(error: ValidationError) -> str:
    """Where a text of another model is not what it should be, and why: the first mistake."""
    first = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])} {first['msg']}"


@contextmanager
def in_a_sentence(what: str, kind: type[Exception]) -> Iterator[None]:
    """What libraries raise about files that they cannot use becomes one sentence.

    Args:
        what: Its beginning, such as `FILE cannot be read`.
        kind: Of the exception; those that are of it already pass.
    """
    try:
        yield
    except kind:
        raise
    except Exception as error:
        raise kind(f"{what}: {first_sentence(error)}") from error
