"""What an operator writes about LoRAs: `catalogue.json`, parsed and checked. Needs no torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from ...common.sentences import shown

if TYPE_CHECKING:
    from pathlib import Path

MAX_INDEX_BYTES = 16 * 2**20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class CatalogueError(ValueError):
    """A catalogue that cannot be read; the message names the file and the field."""


class Annotation(BaseModel):
    """What `catalogue.json` says about one LoRA."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    location: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$")] | None = None
    bound: Annotated[int, Field(ge=0, le=10_000)] | None = None
    alpha: Annotated[float, Field(gt=0, lt=1e6)] | None = None
    description: Annotated[str, StringConstraints(max_length=10_000)] = ""


_Name = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    loras: dict[_Name, Annotation]


_INDEX = TypeAdapter(_Index)


def read_index(path: Path) -> dict[str, Annotation]:
    """The entries of a `catalogue.json`, by name; none without one.

    Raises:
        CatalogueError: If it is not what it should be.
    """
    if not path.exists():
        return {}
    try:
        return dict(_INDEX.validate_json(read_bounded(path, MAX_INDEX_BYTES)).loras)
    except ValidationError as error:
        raise CatalogueError(f"{path}: {first_mistake(error)}") from None


def read_bounded(path: Path, most: int) -> bytes:
    """A file's content.

    Raises:
        CatalogueError: If there are more bytes than that.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise CatalogueError(f"{path} has more than {most} bytes")
    return content


def first_mistake(error: ValidationError) -> str:
    """The first thing wrong with a JSON text, as a sentence that names the field."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "extra_forbidden":
        known = _Index if len(first["loc"]) == 1 else Annotation
        return f"{field} is not known; allowed: {', '.join(known.model_fields)}"
    if first["type"] == "json_invalid" or not field:
        return first["msg"]
    return f"{field} is {shown(first.get('input'))}: {first['msg']}"
