"""Where a ControlNet runs: as an operator says it, in an option or in a table of a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
Gpu = Annotated[int, Field(ge=0)]


class DeploymentError(ValueError):
    """What was asked for cannot be served; the message names the place, what was given and what is wanted."""


class Table(BaseModel):
    """A table of a deployment."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ControlNetPlacement(Table):
    """A ControlNet, and where it runs: on GPUs, on the CPU, or on another Triton server."""

    path: Path
    gpus: tuple[Gpu, ...] = ()
    processes: int | None = Field(default=None, ge=1, le=64)
    url: str | None = None

    @field_validator("url")
    @classmethod
    def _is_grpc(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "grpc://host:1")
        try:
            has_port = parts.port is not None
        except ValueError:
            has_port = False
        if parts.scheme != "grpc" or not parts.hostname or not has_port or parts.query or parts.fragment:
            raise ValueError("wanted: grpc://HOST:PORT, or grpc://HOST:PORT/NAME where it has another name there")
        return url

    @model_validator(mode="after")
    def _is_in_one_place(self) -> ControlNetPlacement:
        if (bool(self.gpus) + (self.processes is not None) + (self.url is not None)) > 1:
            raise ValueError("wanted: one of gpus, processes (on the CPU) and url")
        if len(set(self.gpus)) < len(self.gpus):
            raise ValueError("gpus names one twice; wanted: an instance on each of several")
        return self

    @classmethod
    def parse(cls, text: str) -> tuple[str, ControlNetPlacement]:
        """`NAME=PATH`, or with `@0,1` (GPUs), `@cpu:2` (processes) or `@grpc://HOST:PORT` behind it.

        Raises:
            DeploymentError: If it is anything else.
        """
        name, _, rest = text.partition("=")
        path, is_placed, place = rest.rpartition("@") if "@" in rest else (rest, "", "")
        given: dict[str, Any] = {"path": path}
        if place.startswith("cpu"):
            given["processes"] = place.removeprefix("cpu").removeprefix(":") or 1
        elif re.fullmatch(r"\d+(,\d+)*", place):
            given["gpus"] = place.split(",")
        elif "://" in place:
            given["url"] = place
        elif is_placed:
            path = ""
        if not (NAME.fullmatch(name) and path):
            raise DeploymentError(
                f'--controlnet is "{text}"; wanted: NAME=PATH, or NAME=PATH@0,1 for an instance on each GPU, '
                "NAME=PATH@cpu:2 for two processes, NAME=PATH@grpc://HOST:PORT for another server"
            )
        return name, cls._checked(given, f'--controlnet is "{text}"')

    @classmethod
    def _checked(cls, given: dict[str, Any], what: str) -> ControlNetPlacement:
        try:
            return cls(**given)
        except ValidationError as error:
            raise DeploymentError(f"{what}: {first_mistake(error)}") from None


def first_mistake(error: ValidationError, as_option: bool = False) -> str:
    """Where the first mistake is, what was given and what is wanted; the place as a key or as an option."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if as_option and place:
        place = f"--{place.replace('_', '-')}"
    said = first["msg"].removeprefix("Value error, ")
    if not place:
        return said
    return f"{place}: {said}" if isinstance(first.get("input"), dict) else f"{place} is {first.get('input')!r}: {said}"
