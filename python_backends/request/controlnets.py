"""CONTROLNETS and CONTROL_IMAGES of a client request: parsed and checked against the ControlNets that there are."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from ..common.errors import InvalidRequestError
from ..common.sentences import shown
from .completed import ControlNetUse
from .fields import Entry, Fields
from .picture_inputs import MAX_SIDE, kept

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .editing import AskedEdit

Mode = Annotated[int, Field(ge=0)]


class ControlNet(Entry):
    """One entry of CONTROLNETS: active in steps that lie within the fractions [start, end] of the whole."""

    name: str = Field(min_length=1, max_length=128)
    scale: float = Field(default=1.0, ge=0.0, le=10.0)
    start: float = Field(default=0.0, ge=0.0, le=1.0)
    end: float = Field(default=1.0, ge=0.0, le=1.0)
    guess_mode: bool = False
    control_mode: Mode | Annotated[list[Mode], Field(max_length=16)] | None = None
    stale: bool = False
    picture: Literal["inpaint"] | None = None

    @property
    def control_modes(self) -> tuple[int, ...]:
        """Of a ControlNetUnion, what each of its pictures is."""
        if self.control_mode is None:
            return ()
        return (self.control_mode,) if isinstance(self.control_mode, int) else tuple(self.control_mode)

    @property
    def pictures(self) -> int:
        """How many of CONTROL_IMAGES it takes."""
        return 0 if self.picture else max(1, len(self.control_modes))


@dataclass(frozen=True)
class KnownControlNet:
    """What a request needs to know of a ControlNet that the server has.

    Attributes:
        control_modes: Of a ControlNetUnion, how many there are; else 0.
        pools: Whether it averages its residuals over the picture; then it steers the conditional half only, as in
            diffusers.
    """

    control_modes: int = 0
    pools: bool = False


NONE_KNOWN: Mapping[str, KnownControlNet] = MappingProxyType({})


class AskedControlNets:
    """The ControlNets of a request, with their pictures."""

    def __init__(self, fields: Fields, known: Mapping[str, KnownControlNet], max_bytes: int, most: int) -> None:
        """Checks them.

        Args:
            fields: Of the request.
            known: The ControlNets that there are, by name.
            max_bytes: Longest CONTROLNETS.
            most: Most entries.

        Raises:
            InvalidRequestError: At the first mistake.
        """
        self._known = known
        self._entries: list[ControlNet] = fields.entries("CONTROLNETS", ControlNet, max_bytes)
        if len(self._entries) > most:
            raise InvalidRequestError(f"CONTROLNETS has {len(self._entries)} entries; allowed: at most {most}")
        for entry in self._entries:
            self._check(entry)
        images = fields.array("CONTROL_IMAGES")
        self._images = np.zeros((0, 1, 1, 3), np.uint8) if images is None else images
        wanted = sum(entry.pictures for entry in self._entries)
        if len(self._images) != wanted:
            raise InvalidRequestError(
                f"CONTROL_IMAGES holds {len(self._images)} pictures; allowed: one per entry of CONTROLNETS without the "
                f'picture "inpaint", of a union one per control mode: {wanted}'
            )
        height, width = self._images.shape[1:3]
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise InvalidRequestError(f"CONTROL_IMAGES are {height} high and {width} wide; allowed: 1 to {MAX_SIDE}")

    def uses(self, keep_picture: Callable[[np.ndarray], str], edit: AskedEdit) -> tuple[ControlNetUse, ...]:
        """The entries completed.

        Args:
            keep_picture: Gives a picture's key.
            edit: What the request changes, for ControlNets that are steered by it.

        Raises:
            InvalidRequestError: If one is, and it changes no part of a picture.
        """
        keys = (kept("CONTROL_IMAGES", image, keep_picture) for image in self._images)
        return tuple(
            ControlNetUse(
                name=entry.name,
                images=tuple(next(keys) for _ in range(entry.pictures))
                or (kept("INIT_IMAGE", edit.known(), keep_picture),),
                scale=entry.scale,
                start=entry.start,
                end=entry.end,
                guess_mode=entry.guess_mode or self._known[entry.name].pools,
                control_modes=entry.control_modes,
                sole=len(self._entries) == 1,
                stale=entry.stale,
            )
            for entry in self._entries
        )

    def _check(self, entry: ControlNet) -> None:
        if entry.name not in self._known:
            allowed = ", ".join(sorted(self._known)) or "this server has no ControlNets"
            raise InvalidRequestError(f"CONTROLNETS names {shown(entry.name)}; allowed: {allowed}")
        if entry.start >= entry.end:
            raise InvalidRequestError(
                f"CONTROLNETS has start {entry.start:g} and end {entry.end:g}; allowed: start below end"
            )
        if entry.picture and len(entry.control_modes) > 1:
            raise InvalidRequestError(
                f"CONTROLNETS has the picture {shown(entry.picture)} and {len(entry.control_modes)} control modes; "
                "allowed: one"
            )
        modes, count = entry.control_modes, self._known[entry.name].control_modes
        given = f"CONTROLNETS gives {shown(entry.name)} the control_mode {entry.control_mode}"
        if not count and entry.control_mode is not None:
            raise InvalidRequestError(f"{given}; allowed: none, it is no union of several")
        if count and (not modes or len(set(modes)) < len(modes) or max(modes) >= count):
            raise InvalidRequestError(f"{given}; allowed: one of 0 to {count - 1}, or a list of different ones")
