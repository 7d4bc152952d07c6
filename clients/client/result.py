"""What comes back: the picture, the report on how it was made, progress (the wire contract's output side)."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict

from .errors import ServerFailure
from .request import GenerationRequest, Lora


class _Report(BaseModel):
    """Part of INFO; keys that this client does not know are kept in `model_extra`."""

    model_config = ConfigDict(extra="allow", frozen=True)


class LoraReport(_Report):
    """How one LoRA was applied.

    Attributes:
        name: in the server's catalogue.
        scale: its weight.
        patched_at_step: the first step that ran with it; 0: the picture is exact.
        bound: the step that would have waited for it.
        source: where it was: `gpu` (in the UNet already), `host`, `disk` or `remote`.
        load_ms: from the request's arrival until it was in the host's memory.
        patch_ms: changing the UNet's weights.
        waited_ms: how long the request stood still for it, at its bound.
        modules: how many of the networks' modules it changes.
        notes: what was assumed about its file, or left out of it: sentences.
    """

    name: str
    scale: float | None = None
    patched_at_step: int | None = None
    bound: int | None = None
    source: str | None = None
    load_ms: float | None = None
    patch_ms: float | None = None
    waited_ms: float | None = None
    modules: int | None = None
    notes: tuple[str, ...] = ()


class ControlNetReport(_Report):
    """How often one ControlNet gave residuals, and how often those of the step before."""

    name: str
    scale: float | None = None
    calls: int | None = None
    stale_calls: int | None = None


class CachedBlocks(_Report):
    """In how many blocks of the UNet's transformers, of how many, masked tokens alone were computed."""

    mean: float
    of: int


class EditingReport(_Report):
    """What a mask-aware run computed.

    Attributes:
        mode: `tokens`: most steps computed masked tokens alone; or `exact`: all computed all.
        mask: share of the picture that was masked.
        why: all was computed, if it was.
        source: of what the other tokens became: `template`, `own` or `mixed`.
        tokens: shares that were computed, by the UNet's level.
        exact_steps: computed all.
        computed: of all tokens in all steps, the share that was computed.
        blocks_cached: of the transformers' blocks, in steps that computed masked tokens alone, those that did; where
            what is known comes slowly, the others compute all.
        cache_error: largest distance of the line from what an exact step gave, as a share of it.
        same_prompt: where a template was gone by: whether all that was known of the picture came of this prompt.
        misses: the same: steps that computed all because nothing was known for them.
    """

    mode: str
    mask: float
    why: str | None = None
    source: str | None = None
    tokens: tuple[float, ...] = ()
    exact_steps: tuple[int, ...] = ()
    computed: float | None = None
    blocks_cached: CachedBlocks | None = None
    cache_error: float | None = None
    same_prompt: bool | None = None
    misses: int | None = None


class GenerationInfo(_Report):
    """How a picture was made.

    Attributes:
        seed: asked for, or drawn by the server; this and what follows to `scheduler` repeat the picture.
        steps: of denoising.
        guidance_scale: classifier-free guidance.
        guidance_rescale: None: none.
        height: pixels.
        width: pixels.
        scheduler: the contract's name, or the class of the checkpoint's own.
        kind: `text_to_image`, `image_to_image` or `inpaint`.
        strength: share of the steps that were taken, of a run that began with a picture.
        steps_kept: how many those are.
        composite: whether what the mask left was put back, pixel by pixel.
        editing: what was computed, if the request was mask-aware.
        output_format: of the file that it came as; None: raw pixels.
        clip_skip: None: none.
        prompt_syntax: `weighted`; None: `plain`.
        prompt_truncated: whether the text encoders read less than the prompt.
        loras: in the order of the request.
        lora_path: `patched` into the weights or `beside` them → evaluations of a half with LoRAs.
        lora_defaults: field that the request left out, such as `steps` → the LoRA whose default it took.
        controlnets: in the order of the request.
        shards: UNet shards that evaluated some of it.
        unet_evaluations: of the whole run; two per step for some schedulers.
        precision: `fp8` where the UNet multiplied 8-bit floats; None: what the server computes in.
        largest_batch: most requests that it shared a step with, itself included.
        forecast_ms: from admission to the end of denoising, as it was forecast.
        forecast_came_to_ms: what it came to.
        timings_ms: milliseconds per stage.
    """

    seed: int
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None
    kind: str | None = None
    strength: float | None = None
    steps_kept: int | None = None
    composite: bool | None = None
    editing: EditingReport | None = None
    output_format: str | None = None
    clip_skip: int | None = None
    prompt_syntax: str | None = None
    prompt_truncated: bool | None = None
    loras: tuple[LoraReport, ...] = ()
    lora_path: dict[str, int] = {}
    lora_defaults: dict[str, str] = {}
    controlnets: tuple[ControlNetReport, ...] = ()
    shards: tuple[str, ...] = ()
    unet_evaluations: int | None = None
    precision: str | None = None
    largest_batch: int | None = None
    forecast_ms: float | None = None
    forecast_came_to_ms: float | None = None
    timings_ms: dict[str, float] = {}

    def replay(self, request: GenerationRequest) -> GenerationRequest:
        """The request that makes this picture again, whatever is loaded by then.

        A picture depends on the steps at which its LoRAs went on, which is a matter of what was loaded when; the
        request that is returned names them, and all that the server chose or drew.

        Args:
            request: what this picture was made of; its texts and ControlNets are kept.

        Raises:
            ValueError: the report lacks a LoRA's step.
        """
        reported = {name: value for name in _REPEATED if (value := getattr(self, name)) is not None}
        loras = tuple(_replayed(lora) for lora in self.loras)
        return replace(request, **reported, loras=loras, lora_bound=None, lora_patch_step=None, request_id=None)


_REPEATED = (
    "seed",
    "steps",
    "guidance_scale",
    "guidance_rescale",
    "height",
    "width",
    "scheduler",
    "clip_skip",
    "prompt_syntax",
    "strength",
)
"""Fields of requests that INFO reports."""


class Progress(_Report):
    """`step` of `of` denoising steps are done.

    Attributes:
        step: done.
        of: in all.
        preview: a file that shows the picture so far, where one was asked for.
    """

    step: int
    of: int
    preview: bytes | None = None


@dataclass(frozen=True, eq=False)
class GenerationResult:
    """A finished picture.

    Attributes:
        raw: uint8 [H, W, 3], where the request asked for no file.
        encoded: the file that it asked for.
        info: how it was made.
        request: what was sent, with its id.
        seconds: from sending to receiving, as this client saw it.
    """

    raw: npt.NDArray[np.uint8] | None = field(repr=False)
    encoded: bytes | None = field(repr=False)
    info: GenerationInfo
    request: GenerationRequest
    seconds: float

    @property
    def request_id(self) -> str:
        """The id the request was sent with."""
        return self.request.request_id or ""

    @cached_property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """The picture as uint8 [H, W, 3]; read from its file at first use, if it came as one."""
        return np.asarray(self.image.convert("RGB")) if self.raw is None else self.raw

    @cached_property
    def image(self) -> Image.Image:
        """The picture as a PIL image, made at first use."""
        return Image.open(io.BytesIO(self.encoded or b"")) if self.raw is None else Image.fromarray(self.raw)

    def replay(self) -> GenerationRequest:
        """The request that makes this picture again; see `GenerationInfo.replay`."""
        return self.info.replay(self.request)


Outputs = Mapping[str, npt.NDArray[Any] | None]


def parse_result(outputs: Outputs, request: GenerationRequest, seconds: float) -> GenerationResult:
    """A finished picture from the outputs IMAGE [1, H, W, 3] or ENCODED_IMAGE [1, 1], and INFO [1, 1].

    Raises:
        ServerFailure: an output is missing.
    """
    image, encoded, info = (outputs.get(name) for name in ("IMAGE", "ENCODED_IMAGE", "INFO"))
    if info is None or (image is None and encoded is None):
        raise ServerFailure(f"the server's answer lacks {'INFO' if info is None else 'IMAGE and ENCODED_IMAGE'}")
    return GenerationResult(
        None if image is None else image[0],
        None if encoded is None else _file(encoded, request),
        GenerationInfo.model_validate_json(_text(info)),
        request,
        seconds,
    )


def parse_progress(outputs: Outputs, request: GenerationRequest) -> Progress | None:
    """Progress from a response, with its preview if it has one; None if it says nothing of a step."""
    info, preview = outputs.get("INFO"), outputs.get("ENCODED_IMAGE")
    told = {} if info is None else json.loads(_text(info))
    if "step" not in told:
        return None
    return Progress(**told, preview=None if preview is None else _file(preview, request))


def _replayed(lora: LoraReport) -> Lora:
    if lora.patched_at_step is None:
        raise ValueError(f"the report does not say at which step the LoRA {lora.name} went on")
    return Lora(lora.name, lora.scale, lora.patched_at_step)


def _file(tensor: npt.NDArray[Any], request: GenerationRequest) -> bytes:
    asked_as_text = (request.output_format or "").endswith(";base64")
    return base64.b64decode(_text(tensor)) if asked_as_text else _text(tensor)


def _text(tensor: npt.NDArray[Any]) -> bytes:
    value = tensor.reshape(-1)[0]
    return value if isinstance(value, bytes) else str(value).encode()
