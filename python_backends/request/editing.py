"""INIT_IMAGE, MASK_IMAGE, STRENGTH, COMPOSITE of a client request: which picture is changed, where and how much.

Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field, StringConstraints

from ..common.errors import InvalidRequestError
from ..common.sentences import shown
from .mask_aware import (
    EXACT,
    LEVELS,
    MOST_AREA,
    MOST_CHARACTERS,
    PARTS,
    MaskAware,
    asked_mask_aware,
    check_steps,
    parts_of,
)
from .picture_inputs import binary, fitted, kept, picture_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .fields import Fields
    from .rules import RequestRules
    from .schedulers import Evaluations

ImageKey = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Kind = Literal["image_to_image", "inpaint"]
FINEST = 10_000
"""Strengths in messages are multiples of 1 / this."""


@dataclass(frozen=True)
class Edit:
    """How a run begins with a picture.

    Attributes:
        picture: Key among the server's `Pictures`, of the request's size.
        mask: Likewise: where it is painted anew; None for everywhere.
        strength: Share of the steps that are taken, in (0, 1].
        skipped: Steps that are not, at the beginning.
        composite: Whether what lies outside the mask is put back, pixel by pixel, at the end.
        mask_aware: In which steps all of the picture is computed; None for all of them.
        parts: What `mask_aware.parts_of` its mask; empty without one.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    picture: ImageKey
    mask: ImageKey | None
    strength: Annotated[float, Field(gt=0, le=1)]
    skipped: Annotated[int, Field(ge=0)]
    composite: bool = False
    mask_aware: MaskAware | None = None
    parts: Annotated[tuple[Annotated[int, Field(ge=1, le=PARTS)], ...], Field(max_length=LEVELS)] = ()

    @property
    def kind(self) -> Kind:
        """In diffusers' words."""
        return "image_to_image" if self.mask is None else "inpaint"

    @property
    def keys(self) -> tuple[str, ...]:
        """Of its pictures."""
        return (self.picture,) if self.mask is None else (self.picture, self.mask)

    @property
    def starts_from_noise(self) -> bool:
        """Whether nothing of the picture is in the first latents: of a mask at full strength, by diffusers' rule."""
        return self.mask is not None and self.strength == 1.0

    def masked_steps(self, steps: int) -> int:
        """Of so many steps those in which tokens are left out whatever is known of the picture."""
        is_small = bool(self.parts) and self.parts[0] <= MOST_AREA * PARTS
        return self.mask_aware.masked_steps(steps) if self.mask_aware is not None and is_small else 0


class AskedEdit:
    """What of a request is about a picture to start from.

    Attributes:
        picture: [H, W, 3] uint8; None for a request without.
        mask: [H, W] uint8, or None.
    """

    def __init__(self, fields: Fields, rules: RequestRules) -> None:
        """Checks it, and decodes files.

        Raises:
            InvalidRequestError: At the first mistake.
        """
        self._rules = rules
        self._parts: tuple[int, ...] = ()
        self._strength = fields.number("STRENGTH", 0.0, 1.0, allowed="above 0 to 1")
        self._composite, self._mask_aware = fields.boolean("COMPOSITE"), asked_mask_aware(fields)
        self.picture, self.mask = picture_of(fields, "INIT_IMAGE"), picture_of(fields, "MASK_IMAGE")
        without_picture = {"MASK_IMAGE": self.mask is None, "STRENGTH": self._strength is None}
        if self.picture is None:
            for name, is_absent in without_picture.items():
                if not is_absent:
                    raise InvalidRequestError(f"{name} is there, and INIT_IMAGE is missing; required: both")
        if self._composite and self.mask is None:
            raise InvalidRequestError("COMPOSITE is true; allowed: only with MASK_IMAGE")
        if self._mask_aware is not None and self.mask is None:
            given = shown(fields.text("MASK_AWARE", MOST_CHARACTERS))
            raise InvalidRequestError(f"MASK_AWARE is {given}; allowed without MASK_IMAGE: {EXACT}")
        if rules.only_inpaints and self.mask is None:
            raise InvalidRequestError("MASK_IMAGE is missing; required: this checkpoint only inpaints")

    def side(self, axis: int) -> int | None:
        """Height (0) or width (1) that the request takes where it names none; None for that of the checkpoint.

        Raises:
            InvalidRequestError: If there is no such size.
        """
        if self.picture is None:
            return None
        given, multiple = self.picture.shape[axis], self._rules.size_multiple
        if not multiple <= given <= self._rules.max_size + multiple - 1:
            raise InvalidRequestError(
                f"INIT_IMAGE is {given} {('high', 'wide')[axis]}; allowed without {('HEIGHT', 'WIDTH')[axis]}: "
                f"{multiple} to {self._rules.max_size}"
            )
        return given // multiple * multiple

    def fit(self, height: int, width: int) -> None:
        """Brings picture and mask to the request's size; the mask is 0 or 1 from then on.

        Raises:
            InvalidRequestError: If the mask leaves everything as it is.
        """
        if self.picture is None:
            return
        self.picture = fitted(self.picture, height, width)
        if self.mask is not None:
            self.mask = binary(fitted(self.mask, height, width))
            cell = self._rules.latent_cell
            self._parts = parts_of(self.mask[::cell, ::cell])
            if not any(self._parts):
                raise InvalidRequestError(
                    f"MASK_IMAGE is below 128 at the first pixel of every {cell} x {cell} cell, which decides for it; "
                    "allowed: masks that repaint something"
                )

    def use(self, steps: int, evaluations: Evaluations, keep_picture: Callable[[np.ndarray], str]) -> Edit | None:
        """The edit of a run of so many steps with so many evaluations; `keep_picture` gives a picture's key.

        Raises:
            InvalidRequestError: If no step would be taken, or one is named that is not.
        """
        if self.picture is None:
            return None
        strength = self._strength
        if strength is None:
            strength = self._rules.img2img_strength if self.mask is None else self._rules.inpaint_strength
        taken = min(int(steps * strength), steps)
        if not taken:
            least = next(each for each in range(1, FINEST + 1) if int(steps * (each / FINEST))) / FINEST
            raise InvalidRequestError(f"STRENGTH is {strength:g}; allowed with {steps} STEPS: {least:g} to 1")
        check_steps(self._mask_aware, evaluations.of(steps, skipped=steps - taken), steps, strength)
        mask = None if self.mask is None else kept("MASK_IMAGE", self.mask, keep_picture)
        return Edit(
            kept("INIT_IMAGE", self.picture, keep_picture),
            mask,
            strength,
            steps - taken,
            bool(self._composite),
            self._mask_aware,
            self._parts,
        )

    def known(self) -> np.ndarray:
        """What an inpainting ControlNet is steered by: [H, W, 4], see `Pictures`.

        Raises:
            InvalidRequestError: If the request has no mask.
        """
        if self.picture is None or self.mask is None:
            raise InvalidRequestError(
                'CONTROLNETS has the picture "inpaint"; required beside it: INIT_IMAGE, MASK_IMAGE'
            )
        return np.dstack([self.picture, 1 - self.mask])
