"""What a server has to ask for: the answer of its model `pipelines`."""

from collections.abc import Container, Mapping
from typing import Any

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from .errors import ServerFailure


class _Part(BaseModel):
    """Keys that this client does not know are kept in `model_extra`."""

    model_config = ConfigDict(extra="allow", frozen=True)


class NamedScheduler(_Part):
    """A sampler: its name here, and what A1111's web UI calls it and its schedule type."""

    name: str
    sampler: str
    schedule: str


class LoraDescription(_Part):
    """A LoRA of the catalogue, and what requests that name it default to; None: what all default to."""

    name: str
    scale: float | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None


class NamedControlNet(_Part):
    """A ControlNet; `control_modes` of a ControlNetUnion is how many there are, else 0."""

    name: str
    control_modes: int = 0


class PipelineDescription(_Part):
    """Defaults and limits of one entry model.

    Attributes:
        height: default, in pixels.
        width: likewise.
        size_multiple: heights and widths are multiples of it.
        max_size: the largest.
        steps: default.
        max_steps: most.
        guidance_scale: default.
        max_guidance_scale: largest.
        max_prompt_characters: longest prompt, and negative prompt.
        scheduler: class of the checkpoint's own, which is the default.
        schedulers: the others.
        img2img_strength: default of requests with a picture to start from.
        inpaint_strength: the same with a mask.
        only_inpaints: whether it does nothing without both.
        max_loras: most in one request.
        loras: the catalogue.
        max_controlnets: most in one request.
        controlnets: those that there are.
    """

    height: int
    width: int
    size_multiple: int
    max_size: int
    steps: int
    max_steps: int
    guidance_scale: float
    max_guidance_scale: float
    max_prompt_characters: int
    scheduler: str
    schedulers: tuple[NamedScheduler, ...]
    img2img_strength: float | None = None
    inpaint_strength: float | None = None
    only_inpaints: bool = False
    max_loras: int
    loras: tuple[LoraDescription, ...]
    max_controlnets: int
    controlnets: tuple[NamedControlNet, ...]

    def steps_with(self, loras: Container[str]) -> int:
        """Default of requests that name these LoRAs: that of one which has its own, such as one that distils."""
        return min((each.steps for each in self.loras if each.name in loras and each.steps), default=self.steps)


def parse_pipelines(outputs: Mapping[str, npt.NDArray[Any] | None]) -> dict[str, PipelineDescription]:
    """Pipelines by name from the output PIPELINES [1, 1].

    Raises:
        ServerFailure: the output is missing, or another release's.
    """
    told = outputs.get("PIPELINES")
    if told is None:
        raise ServerFailure("the server's answer lacks PIPELINES")
    try:
        return TypeAdapter(dict[str, PipelineDescription]).validate_json(told.reshape(-1)[0])
    except ValidationError as error:
        raise ServerFailure(f"PIPELINES is not as this client knows it: {error.errors()[0]['msg']}") from None
