"""What an operator writes about LoRAs: `catalogue.json`, parsed and checked. Needs no torch."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from ...common.sentences import shown
from ...request.loras import LoraDefaults

if TYPE_CHECKING:
    from pathlib import Path

MAX_INDEX_BYTES = 16 * 2**20
MOST_CHARACTERS = 128


class CatalogueError(ValueError):
    """A catalogue that cannot be read; the message names the file and the field."""


def lora_name(text: str) -> str:
    """A LoRA's name in the form in which names are compared: composed (NFC), since file systems differ in that.

    Raises:
        ValueError: If it could not be a file's name, or not be shown.
    """
    name = unicodedata.normalize("NFC", text)
    if not name.isprintable() or "/" in name or name != name.strip() or name.startswith(".") or not name:
        raise ValueError(
            "wanted: a name of printable characters without /, with no blank at its ends and no leading dot"
        )
    if len(name) > MOST_CHARACTERS:
        raise ValueError(f"it has {len(name)} characters; wanted: a name of at most {MOST_CHARACTERS}")
    return name


def _location(text: str) -> str:
    """A path, also of a `file://` URL, or the URL of what is elsewhere."""
    try:
        path = unquote(urlsplit(text).path) if "://" in text else text
    except ValueError:
        raise ValueError("wanted: a path or a URL") from None
    if "\0" in path:
        raise ValueError("wanted: a path or a URL without a NUL character")
    return path if text.startswith("file://") else text


class Annotation(BaseModel):
    """What `catalogue.json` says about one LoRA.

    `steps`, `guidance_scale`, `scheduler` and `scale` are what requests that name it default to.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    location: Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_location)] | None = None
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$", to_lower=True)] | None = None
    bound: Annotated[int, Field(ge=0, le=10_000)] | None = None
    alpha: Annotated[float, Field(gt=0, lt=1e6)] | None = None
    description: Annotated[str, StringConstraints(max_length=10_000)] = ""
    steps: Annotated[int, Field(ge=1, le=10_000)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None = None
    scheduler: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    scale: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] | None = None

    @property
    def defaults(self) -> LoraDefaults:
        """Of requests that name it."""
        return LoraDefaults(self.steps, self.guidance_scale, self.scheduler, self.scale)


_Name = Annotated[str, AfterValidator(lora_name)]


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
