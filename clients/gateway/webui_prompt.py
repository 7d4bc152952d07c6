"""LoRAs in prompts, as A1111's web UI has them: `<lora:NAME:SCALE>`."""

import re

from ..client.request import Lora
from .errors import ApiError

_TAG = re.compile(r"<(\w{1,32}):([^<>]{1,300})>")


def without_loras(prompt: str) -> tuple[str, tuple[Lora, ...]]:
    """A prompt without its tags, and the LoRAs that they name, in their order; those without a scale have the default.

    Raises:
        ApiError: If a tag names another kind of network, or its scale is no number.
    """
    loras = []
    for kind, arguments in _TAG.findall(prompt):
        if kind != "lora":
            raise ApiError(400, f"prompt holds <{kind}:…>; allowed: <lora:NAME:SCALE>", param="prompt")
        name, *scales = arguments.split(":")
        loras.append(Lora(name, _scale(arguments, scales)))
    return _TAG.sub("", prompt).strip() if loras else prompt, tuple(loras)


def _scale(arguments: str, scales: list[str]) -> float | None:
    """The scale of a tag; A1111 lets text encoder and UNet have different ones."""
    try:
        numbers = {float(scale) for scale in scales}
    except ValueError:
        numbers = {0.0, 1.0}
    if len(numbers) > 1:
        raise ApiError(400, f"prompt holds <lora:{arguments}>; allowed: <lora:NAME:SCALE>, one number", param="prompt")
    return numbers.pop() if numbers else None
