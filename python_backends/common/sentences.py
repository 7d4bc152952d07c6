"""Values as error messages show them. Needs no torch."""

from __future__ import annotations

import json

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
