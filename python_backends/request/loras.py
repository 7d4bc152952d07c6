"""A request's LoRAs: which, how strong, from which step on, and what they want of a request that is silent."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field

from ..common.errors import InvalidRequestError
from ..common.sentences import shown
from .completed import LoraUse
from .fields import Entry

if TYPE_CHECKING:
    from .fields import Fields
    from .rules import RequestRules

MOST_EVALUATIONS_PER_STEP = 2
"""UNet evaluations that a sampler makes per step: two for Heun. The denoiser knows the run's own number."""


class Lora(Entry):
    """One entry of LORAS; `patch_step` replays one LoRA's step where LORA_PATCH_STEP would be one for all."""

    name: str = Field(min_length=1, max_length=128)
    scale: float = Field(default=1.0, ge=-10.0, le=10.0)
    patch_step: int | None = Field(default=None, ge=0)


@dataclass(frozen=True)
class LoraDefaults:
    """What the catalogue says of requests that name a LoRA, where they are silent; None where it says nothing."""

    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    scale: float | None = None


class KnownLoras(Protocol):
    """The LoRAs that there are: `lora.loading.catalogue.Catalogue`."""

    def bound(self, name: str, steps: int) -> int | None:
        """The default bound of a LoRA in a run of so many steps, None for the server's; raises UnknownLoraError."""

    def defaults(self, name: str) -> LoraDefaults:
        """What requests with it default to; raises UnknownLoraError."""


class AskedLoras:
    """LORAS, LORA_BOUND and LORA_PATCH_STEP of one request.

    Attributes:
        applied: Field → name of the LoRA whose default it took.
    """

    def __init__(self, fields: Fields, rules: RequestRules, catalogue: KnownLoras) -> None:
        """Checks them.

        Raises:
            InvalidRequestError: At the first mistake.
        """
        asked: list[Lora] = fields.entries("LORAS", Lora, rules.max_json_bytes)
        self._bound = fields.integer("LORA_BOUND", 0, rules.max_steps)
        self._patch_step = fields.integer("LORA_PATCH_STEP", 0, MOST_EVALUATIONS_PER_STEP * rules.max_steps)
        if len(asked) > rules.max_loras:
            raise InvalidRequestError(f"LORAS has {len(asked)} entries; allowed: at most {rules.max_loras}")
        self._rules, self._catalogue = rules, catalogue
        self._loras: dict[str, Lora] = {}
        self._defaults: dict[str, LoraDefaults] = {}
        self.applied: dict[str, str] = {}
        for lora in asked:
            name = unicodedata.normalize("NFC", lora.name)  # as the catalogue has them
            if name in self._loras:
                raise InvalidRequestError(f"LORAS names {shown(name)} twice; allowed: once, with the summed scale")
            self._loras[name], self._defaults[name] = lora, catalogue.defaults(name)

    def default(self, field: str) -> Any:
        """What the LoRAs want of a field that the request leaves out; None if none of them says.

        Args:
            field: `STEPS`, `GUIDANCE_SCALE` or `SCHEDULER`.

        Raises:
            InvalidRequestError: If they want different values.
        """
        wanted = {name: getattr(defaults, field.lower()) for name, defaults in self._defaults.items()}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        if len(set(wanted.values())) > 1:
            differ = ", ".join(f"{shown(value)} ({name})" for name, value in wanted.items())
            raise InvalidRequestError(f"{field} is missing; required here, since the LoRAs' defaults differ: {differ}")
        for name, value in wanted.items():
            self.applied[field.lower()] = name
            return value
        return None

    def uses(self, steps: int) -> tuple[LoraUse, ...]:
        """The LoRAs of a run of so many steps; the bound is the request's, else the catalogue's, else the server's."""
        return tuple(self._use(name, lora, steps) for name, lora in self._loras.items())

    def _use(self, name: str, lora: Lora, steps: int) -> LoraUse:
        bound = self._bound
        if bound is None:
            bound = self._catalogue.bound(name, steps)
        scale = self._defaults[name].scale
        return LoraUse(
            name=name,
            scale=lora.scale if scale is None or "scale" in lora.model_fields_set else scale,
            bound=self._rules.lora_bound if bound is None else bound,
            patch_step=self._patch_step if lora.patch_step is None else lora.patch_step,
        )
