"""The wire contract's inputs: parsed, checked and completed with defaults, here and nowhere else."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from ..common.errors import InvalidRequestError
from ..common.sentences import shown
from .completed import PRIORITIES, CompletedRequest, Priority
from .controlnets import NONE_KNOWN, AskedControlNets
from .editing import AskedEdit
from .fields import Fields
from .loras import AskedLoras
from .outputs import parse_output, parse_previews
from .picture_inputs import fitted
from .prompt_syntax import PLAIN, SYNTAXES, check_weights
from .schedulers import SCHEDULERS, Evaluations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from .controlnets import KnownControlNet
    from .loras import KnownLoras
    from .rules import RequestRules


def parse_request(
    tensors: Mapping[str, np.ndarray],
    rules: RequestRules,
    catalogue: KnownLoras,
    controlnets: Mapping[str, KnownControlNet] = NONE_KNOWN,
    keep_picture: Callable[[np.ndarray], str] = lambda _picture: "0" * 64,
) -> CompletedRequest:
    """Checks and completes one client request.

    Args:
        tensors: Inputs of the wire contract by name, without the leading batch dimension; absent ones are absent.
        rules: Defaults and limits.
        catalogue: The LoRAs that there are.
        controlnets: The ControlNets that there are, by name.
        keep_picture: Called with each of its pictures, in its size, once all else is right; gives its key.

    Raises:
        ImageUnavailableError: If there is no room for a picture.
        InvalidRequestError: At the first field that is missing or out of its limits.
    """
    fields = Fields(tensors)
    prompt = fields.text("PROMPT", rules.max_prompt_characters)
    if prompt is None:
        raise InvalidRequestError("PROMPT is missing; required: a text")
    request_id = fields.request_id()
    timeout_ms = fields.integer("TIMEOUT_MS", 1, rules.max_timeout_ms)
    loras = AskedLoras(fields, rules, catalogue)
    steps = fields.integer("STEPS", 1, rules.max_steps)
    if steps is None:
        steps = _given(_default(loras, "STEPS", 1, rules.max_steps), rules.steps)
    guidance_scale = fields.number("GUIDANCE_SCALE", 0.0, rules.max_guidance_scale)
    if guidance_scale is None:
        guidance_scale = _given(_default(loras, "GUIDANCE_SCALE", 0, rules.max_guidance_scale), rules.guidance_scale)
    asked = AskedControlNets(fields, controlnets, rules.max_json_bytes, rules.max_controlnets)
    edit = AskedEdit(fields, rules)
    height, width = _side("HEIGHT", 0, fields, rules, edit), _side("WIDTH", 1, fields, rules, edit)
    negative_prompt = fields.text("NEGATIVE_PROMPT", rules.max_prompt_characters)
    scheduler = _scheduler(fields, rules, loras)
    output = parse_output(fields)
    previews = parse_previews(fields, rules, output)
    own = Evaluations(rules.own_per_step, rules.own_more)
    evaluations = own if scheduler is None else SCHEDULERS[scheduler].evaluations
    edit.fit(height, width)
    edited = edit.use(steps, evaluations, keep_picture)
    return CompletedRequest(
        run_id=secrets.token_hex(16),
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=_given(fields.integer("SEED", 0, 2**63 - 1), secrets.randbelow(2**63)),
        steps=steps,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
        scheduler=scheduler,
        loras=loras.uses(steps),
        lora_defaults=loras.applied,
        request_id=request_id,
        deadline=None if timeout_ms is None else time.monotonic() + timeout_ms / 1000,
        controlnets=asked.uses(lambda picture: keep_picture(fitted(picture, height, width)), edit),
        clip_skip=fields.integer("CLIP_SKIP", 0, rules.max_clip_skip),
        guidance_rescale=_given(fields.number("GUIDANCE_RESCALE", 0.0, 1.0), 0.0),
        max_chunks=_chunks(fields, rules, prompt, negative_prompt),
        priority=_priority(fields),
        evaluations=evaluations.of(steps, skipped=edited.skipped if edited else 0),
        halves=rules.halves if guidance_scale > 1 else 1,
        output=output,
        previews=previews,
        edit=edited,
    )


def parse_request_id(tensors: Mapping[str, np.ndarray]) -> str:
    """The REQUEST_ID of a call of the model `cancel`.

    Raises:
        InvalidRequestError: If it is missing or out of its limits.
    """
    request_id = Fields(tensors).request_id()
    if request_id is None:
        raise InvalidRequestError("REQUEST_ID is missing; required: a text")
    return request_id


def _side(name: str, axis: int, fields: Fields, rules: RequestRules, edit: AskedEdit) -> int:
    given = fields.size(name, rules)
    if given is None:
        given = edit.side(axis)
    return (rules.height, rules.width)[axis] if given is None else given


def _chunks(fields: Fields, rules: RequestRules, prompt: str, negative_prompt: str | None) -> int | None:
    """How many chunks prompts may fill; None for the plain syntax."""
    syntax = _given(fields.text("PROMPT_SYNTAX", 64), PLAIN)
    if syntax not in SYNTAXES:
        raise InvalidRequestError(f"PROMPT_SYNTAX is {shown(syntax)}; allowed: {', '.join(SYNTAXES)}")
    if syntax == PLAIN:
        return None
    check_weights("PROMPT", prompt)
    check_weights("NEGATIVE_PROMPT", negative_prompt or "")
    return rules.max_prompt_chunks


def _priority(fields: Fields) -> Priority:
    given = _given(fields.text("PRIORITY", 64), "normal")
    for priority in PRIORITIES:
        if given == priority:
            return priority
    raise InvalidRequestError(f"PRIORITY is {shown(given)}; allowed: {', '.join(PRIORITIES)}")


def _scheduler(fields: Fields, rules: RequestRules, loras: AskedLoras) -> str | None:
    name = fields.text("SCHEDULER", 64)
    if name is None:
        name = loras.default("SCHEDULER")
    if name is None or name == rules.own_scheduler:
        return None
    if name not in rules.schedulers:
        allowed = ", ".join((*rules.schedulers, rules.own_scheduler))
        raise InvalidRequestError(
            f"SCHEDULER is {shown(name)}{_whose(loras, 'scheduler')}; allowed by this checkpoint: {allowed} (its own, "
            "also where none is named)"
        )
    return name


def _default(loras: AskedLoras, field: str, low: float, high: float) -> Any:
    """What the LoRAs want of a number that the request leaves out."""
    value = loras.default(field)
    if value is not None and not low <= value <= high:
        raise InvalidRequestError(f"{field} is {value:g}{_whose(loras, field.lower())}; allowed: {low:g} to {high:g}")
    return value


def _whose(loras: AskedLoras, field: str) -> str:
    return f" (the default of {loras.applied[field]})" if field in loras.applied else ""


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value
