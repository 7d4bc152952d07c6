"""What a picture was made of, as A1111's web UI writes it into PNGs: other tools read that. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .schedulers import SCHEDULERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .completed import CompletedRequest, ControlNetUse

KEYWORD = "parameters"
"""Of the PNG's text chunk, there and here."""


def webui_text(request: CompletedRequest, info: Mapping[str, Any]) -> str:
    """The text of one picture.

    Args:
        request: Of it.
        info: Its INFO.
    """
    loras = "".join(f" <lora:{each.name}:{each.scale:g}>" for each in request.loras)
    named = SCHEDULERS.get(info["scheduler"])
    values: dict[str, object] = {
        "Steps": request.steps,
        "Sampler": info["scheduler"] if named is None else named.sampler,
        "Schedule type": None if named is None else named.schedule,
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": None if request.arrival is None else request.arrival.pipeline,
        "Clip skip": None if request.clip_skip is None else request.clip_skip + 1,  # counts the last layer too
        "Denoising strength": None if request.edit is None else f"{request.edit.strength:g}",
        "CFG Rescale": f"{request.guidance_rescale:g}" if request.guidance_rescale else None,
    }
    for position, use in enumerate(request.controlnets):
        values[f"ControlNet {position}"] = f'"{_of_controlnet(use)}"'
    lines = [request.prompt + loras]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {value}" for key, value in values.items() if value is not None))
    return "\n".join(lines)


def _of_controlnet(use: ControlNetUse) -> str:
    values = {
        "Module": "none",
        "Model": use.name,
        "Weight": f"{use.scale:g}",
        "Guidance Start": f"{use.start:g}",
        "Guidance End": f"{use.end:g}",
        "Control Mode": "ControlNet is more important" if use.guess_mode else "Balanced",
    }
    return ", ".join(f"{key}: {value}" for key, value in values.items())
