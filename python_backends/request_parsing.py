"""The wire contract's inputs: parsed, checked and completed with defaults, here and nowhere else."""

from __future__ import annotations

import json
import math
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .completed_request import CompletedRequest
from .errors import InvalidRequestError
from .schedulers import SCHEDULERS

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Lora(_Entry):
    """One entry of LORAS."""

    name: str = Field(min_length=1, max_length=128)
    scale: float = Field(default=1.0, ge=-10.0, le=10.0)


class ControlNet(_Entry):
    """One entry of CONTROLNETS: active in steps whose fraction of the whole lies within [start, end]."""

    name: str = Field(min_length=1, max_length=128)
    scale: float = Field(default=1.0, ge=0.0, le=10.0)
    start: float = Field(default=0.0, ge=0.0, le=1.0)
    end: float = Field(default=1.0, ge=0.0, le=1.0)


@dataclass(frozen=True)
class RequestRules:
    """Defaults and limits of one served checkpoint; sizes in pixels, texts in characters.

    Attributes:
        steps: Steps where the request names none.
        guidance_scale: Guidance where the request names none.
        height: Height where the request names none.
        width: Width where the request names none.
        size_multiple: Heights and widths are multiples of this.
        max_size: Largest height and width.
        max_steps: Most steps.
        max_guidance_scale: Largest guidance.
        max_prompt_characters: Longest PROMPT and NEGATIVE_PROMPT; the tokeniser truncates as in diffusers.
        max_json_bytes: Longest LORAS and CONTROLNETS.
        max_timeout_ms: Longest TIMEOUT_MS.
    """

    steps: int
    guidance_scale: float
    height: int
    width: int
    size_multiple: int
    max_size: int
    max_steps: int = 200
    max_guidance_scale: float = 50.0
    max_prompt_characters: int = 4096
    max_json_bytes: int = 16384
    max_timeout_ms: int = 3_600_000

    def __post_init__(self) -> None:
        """Refuses defaults beyond the limits with a ValueError."""
        for name, value, low, high in (
            ("steps", self.steps, 1, self.max_steps),
            ("guidance_scale", self.guidance_scale, 0, self.max_guidance_scale),
            ("height", self.height, self.size_multiple, self.max_size),
            ("width", self.width, self.size_multiple, self.max_size),
        ):
            if not low <= value <= high:
                raise ValueError(f"the default of {name} is {value:g}; allowed: {low:g} to {high:g}")


def parse_request(tensors: Mapping[str, np.ndarray], rules: RequestRules) -> CompletedRequest:
    """Checks and completes one client request.

    Args:
        tensors: Inputs of the wire contract by name, without the leading batch dimension; absent ones are absent.
        rules: Defaults and limits.

    Raises:
        InvalidRequestError: At the first field that is missing or out of its limits.
    """
    fields = _Fields(tensors)
    prompt = fields.text("PROMPT", rules.max_prompt_characters)
    if prompt is None:
        raise InvalidRequestError("PROMPT is missing; required: a text")
    scheduler = fields.text("SCHEDULER", 64)
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise InvalidRequestError(
            f"SCHEDULER is {_shown(scheduler)}; allowed: {', '.join(SCHEDULERS)}, or none for the checkpoint's own"
        )
    request_id = fields.request_id()
    timeout_ms = fields.integer("TIMEOUT_MS", 1, rules.max_timeout_ms)
    _refuse_adapters(fields, rules)
    return CompletedRequest(
        run_id=secrets.token_hex(16),
        prompt=prompt,
        negative_prompt=fields.text("NEGATIVE_PROMPT", rules.max_prompt_characters),
        seed=_given(fields.integer("SEED", 0, 2**63 - 1), secrets.randbelow(2**63)),
        steps=_given(fields.integer("STEPS", 1, rules.max_steps), rules.steps),
        guidance_scale=_given(fields.number("GUIDANCE_SCALE", 0.0, rules.max_guidance_scale), rules.guidance_scale),
        height=_given(fields.size("HEIGHT", rules), rules.height),
        width=_given(fields.size("WIDTH", rules), rules.width),
        scheduler=scheduler,
        request_id=request_id,
        deadline=None if timeout_ms is None else time.time() + timeout_ms / 1000,
    )


def parse_request_id(tensors: Mapping[str, np.ndarray]) -> str:
    """The REQUEST_ID of a call of the model `cancel`.

    Raises:
        InvalidRequestError: If it is missing or out of its limits.
    """
    request_id = _Fields(tensors).request_id()
    if request_id is None:
        raise InvalidRequestError("REQUEST_ID is missing; required: a text")
    return request_id


def _refuse_adapters(fields: _Fields, rules: RequestRules) -> None:
    """Parses LoRA and ControlNet inputs; with empty catalogues every name in them is unknown."""
    loras = fields.entries("LORAS", Lora, rules.max_json_bytes)
    controlnets = fields.entries("CONTROLNETS", ControlNet, rules.max_json_bytes)
    for field, kind, entries in (("LORAS", "LoRAs", loras), ("CONTROLNETS", "ControlNets", controlnets)):
        if entries:
            raise InvalidRequestError(f"{field} names {_shown(entries[0].name)}; allowed: this server has no {kind}")
    fields.integer("LORA_BOUND", 0, rules.max_steps)
    fields.integer("LORA_PATCH_STEP", 0, rules.max_steps)
    images = fields.array("CONTROL_IMAGES")
    if images is not None and len(images):
        raise InvalidRequestError(f"CONTROL_IMAGES holds {len(images)} pictures; allowed: one per entry of CONTROLNETS")


@dataclass(frozen=True)
class _Fields:
    """Typed access to the tensors of one request; None for an absent one."""

    tensors: Mapping[str, np.ndarray]

    def array(self, field: str) -> np.ndarray | None:
        return self.tensors.get(field)

    def text(self, field: str, most: int) -> str | None:
        raw = self._bytes(field, 4 * most, f"at most {most} characters")
        if raw is None:
            return None
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequestError(
                f"{field} is not UTF-8 (byte {error.start} of {len(raw)}); allowed: UTF-8 text"
            ) from None
        if len(text) > most:
            raise InvalidRequestError(f"{field} has {len(text)} characters; allowed: at most {most}")
        if "\0" in text:
            raise InvalidRequestError(f"{field} holds a NUL character; allowed: text without it")
        return text

    def request_id(self) -> str | None:
        text = self.text("REQUEST_ID", 256)
        if text == "":
            raise InvalidRequestError('REQUEST_ID is ""; allowed: 1 to 256 characters')
        return text

    def integer(self, field: str, low: int, high: int) -> int | None:
        value = self._scalar(field)
        if value is None:
            return None
        if not low <= int(value) <= high:
            raise InvalidRequestError(f"{field} is {int(value)}; allowed: {low} to {high}")
        return int(value)

    def number(self, field: str, low: float, high: float) -> float | None:
        value = self._scalar(field)
        if value is None:
            return None
        if not math.isfinite(value) or not low <= value <= high:
            raise InvalidRequestError(f"{field} is {float(value):g}; allowed: {low:g} to {high:g}")
        return float(value)

    def size(self, field: str, rules: RequestRules) -> int | None:
        value = self._scalar(field)
        if value is None:
            return None
        multiple, most = rules.size_multiple, rules.max_size
        if not multiple <= value <= most or value % multiple:
            raise InvalidRequestError(
                f"{field} is {int(value)}; allowed: multiples of {multiple} from {multiple} to {most}"
            )
        return int(value)

    def entries(self, field: str, kind: type[_Entry], most: int) -> list[Any]:
        raw = self._bytes(field, most, f"at most {most} bytes")
        if raw is None:
            return []
        example = {name: _example(name) for name in kind.model_fields}
        try:
            return TypeAdapter(list[kind]).validate_json(raw)  # type: ignore[valid-type]
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            raise InvalidRequestError(
                f"{field}{place} is {_shown(first.get('input'))}: {first['msg']}; allowed: {json.dumps([example])}"
            ) from None

    def _bytes(self, field: str, most: int, allowed: str) -> bytes | None:
        value = self._scalar(field)
        if value is None:
            return None
        raw = value if isinstance(value, bytes) else str(value).encode("utf-8")
        if len(raw) > most:
            raise InvalidRequestError(f"{field} has {len(raw)} bytes; allowed: {allowed}")
        return raw

    def _scalar(self, field: str) -> Any:
        array = self.array(field)
        if array is None:
            return None
        if array.size != 1:
            raise InvalidRequestError(f"{field} has {array.size} values; allowed: one")
        return array.reshape(-1)[0]


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _example(name: str) -> str | float:
    return "…" if name == "name" else float(name != "start")


def _shown(value: object) -> str:
    """A value as JSON, cut to a length that fits a sentence."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}…"
