"""The body of OpenAI's `POST /v1/images/generations`, and what this project adds to it."""

import asyncio
import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..client.pipelines import PipelineDescription
from ..client.request import ControlNet, GenerationRequest, Lora
from .bodies import Number
from .errors import ApiError
from .pictures import of_size, read_picture

AUTO_PREVIEW_SIZE = 512
"""Longer side of partial images, in pixels, where the picture is larger."""

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LoraField(_Body):
    """One LoRA of the pipeline's catalogue."""

    name: str = Field(min_length=1, max_length=128)
    scale: Number | None = None
    patch_step: int | None = None


class ControlNetField(_Body):
    """One ControlNet, with its picture: base64 of a PNG, JPEG or WebP."""

    name: str = Field(min_length=1, max_length=128)
    image: str
    scale: Number | None = None
    start: Number | None = None
    end: Number | None = None
    guess_mode: bool | None = None
    control_mode: int | None = None


class ImageGeneration(_Body):
    """Fields of OpenAI's, with the values that have a meaning here; from `negative_prompt` on, those of this project.

    What is absent is left to the server.

    Attributes:
        prompt: what to show.
        model: a pipeline, or `PIPELINE:LORA`; absent: the first.
        n: pictures, with seeds that count up from `seed`.
        size: `WIDTHxHEIGHT`, or `auto`.
        quality: there are no grades of it; see `num_inference_steps`.
        background: pictures have no transparency.
        moderation: there is none.
        output_format: of the pictures.
        output_compression: the quality of WebP (100 keeps every pixel) and JPEG.
        response_format: the picture itself, or a URL where it can be fetched for an hour.
        user: not used.
        safety_identifier: not used.
        stream: server-sent events instead of one answer.
        partial_images: of a stream.
        negative_prompt: what not to show.
        seed: of the first picture.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance.
        guidance_rescale: see the wire contract; so are all that follow, up to `timeout_ms`.
        scheduler: sampler.
        clip_skip: layers.
        prompt_syntax: `plain` or `weighted`.
        lora: one, or a list; a name stands for one with its usual scale.
        lora_bound: steps.
        controlnet: one, or a list.
        priority: in line.
        timeout_ms: after which the picture is given up; what would take longer is refused.
        progress: a stream tells of every step, in events of its own.
        preview_every: so many steps there is a preview in these.
        output_metadata: whether a PNG says what it was made of.
    """

    prompt: str
    model: str | None = Field(None, max_length=256)
    n: int = Field(1, ge=1, le=10)
    size: str = Field("auto", max_length=16)
    quality: Literal["auto", "standard"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    output_format: Literal["png", "webp", "jpeg"] = "png"
    output_compression: int | None = Field(None, ge=0, le=100)
    response_format: Literal["b64_json", "url"] = "b64_json"
    user: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)
    negative_prompt: str | None = None
    seed: int | None = Field(None, ge=0, le=2**63 - 11)
    num_inference_steps: int | None = None
    guidance_scale: Number | None = None
    guidance_rescale: Number | None = None
    scheduler: str | None = None
    clip_skip: int | None = None
    prompt_syntax: str | None = None
    lora: tuple[LoraField, ...] = Field((), max_length=64)
    lora_bound: int | None = None
    controlnet: tuple[ControlNetField, ...] = Field((), max_length=16)
    priority: str | None = None
    timeout_ms: int | None = Field(None, ge=1, le=3_600_000)
    progress: bool = False
    preview_every: int = Field(0, ge=0, le=400)
    output_metadata: bool | None = None

    @field_validator("lora", "controlnet", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        several = tuple(given) if isinstance(given, list | tuple) else (given,)
        return tuple({"name": each} if isinstance(each, str) else each for each in several)

    @field_validator("size")
    @classmethod
    def _is_a_size(cls, size: str) -> str:
        if size != "auto" and not _SIZE.fullmatch(size):
            raise ValueError(f"{size!r} is no size; allowed: WIDTHxHEIGHT, auto")
        return size

    @field_validator("partial_images", "progress", "preview_every")
    @classmethod
    def _of_a_stream(cls, value: int | bool, info: Any) -> int | bool:
        if value and not info.data.get("stream"):
            raise ValueError(f"{value} is given; allowed: only where stream is true")
        return value

    @field_validator("stream")
    @classmethod
    def _is_of_one_picture(cls, stream: bool, info: Any) -> bool:
        if stream and info.data.get("n", 1) > 1:
            raise ValueError(
                f"n is {info.data['n']}; allowed in a stream: 1, since its events do not say whose they are"
            )
        if stream and info.data.get("response_format") == "url":
            raise ValueError("response_format is url; allowed in a stream: b64_json")
        return stream

    @property
    def pipeline(self) -> str | None:
        """The pipeline that is asked for; None: any."""
        return None if self.model is None else self.model.partition(":")[0]

    @property
    def masked_by(self) -> str | None:
        """What of a mask is painted anew, where there is one."""
        return None

    def without_pictures(self) -> Self:
        """Without megabytes that nobody needs once there is a request."""
        return self.model_copy(update={"controlnet": ()})

    async def request(
        self,
        pipeline: PipelineDescription,
        max_pixels: int,
        request_id: str,
        size: tuple[int, int] | None = None,
    ) -> GenerationRequest:
        """What is asked of the server, of the first picture.

        Args:
            pipeline: That makes it.
            max_pixels: Of each picture that the caller sends.
            request_id: Of it.
            size: Height and width where `size` is auto; None: the pipeline's.

        Raises:
            ApiError: if such a picture is none, or there are too many.
        """
        if len(self.controlnet) > pipeline.max_controlnets:
            said = f"controlnet has {len(self.controlnet)} entries; allowed: at most {pipeline.max_controlnets}"
            raise ApiError(400, said, param="controlnet")
        sized = _SIZE.fullmatch(self.size)
        height, width = (int(sized[2]), int(sized[1])) if sized else size or (None, None)
        pictures = [
            await read_picture(each.image, max_pixels, f"controlnet[{index}].image")
            for index, each in enumerate(self.controlnet)
        ]
        sides = (min(side, pipeline.max_size) for side in (height or pipeline.height, width or pipeline.width))
        pictures = await asyncio.to_thread(of_size, pictures, *sides)  # what is larger, the server refuses
        every = self._preview_every(pipeline)
        named = (self.model or "").partition(":")[2]
        return GenerationRequest(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            seed=self.seed,
            steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            guidance_rescale=self.guidance_rescale,
            height=height,
            width=width,
            scheduler=self.scheduler,
            clip_skip=self.clip_skip,
            prompt_syntax=self.prompt_syntax,
            loras=(*((Lora(named),) if named else ()), *(Lora(**each.model_dump()) for each in self.lora)),
            lora_bound=self.lora_bound,
            controlnets=tuple(ControlNet(**each.model_dump(exclude={"image"})) for each in self.controlnet),
            control_images=tuple(pictures),
            request_id=request_id,
            timeout_ms=self.timeout_ms,
            priority=self.priority,
            output_format=self.output_format,
            output_quality=self._quality,
            output_metadata=self.output_metadata,
            previews=every or None,
            preview_size=AUTO_PREVIEW_SIZE if every else None,
        )

    @property
    def _quality(self) -> int | None:
        """OUTPUT_QUALITY; of a PNG 100, OpenAI's default, says nothing."""
        given = self.output_compression
        return None if given is None or (given, self.output_format) == (100, "png") else max(1, given)

    def _preview_every(self, pipeline: PipelineDescription) -> int:
        """Steps between previews: the smaller of what `preview_every` says and what `partial_images` wants."""
        if not self.partial_images:
            return self.preview_every
        between = max(1, self._steps(pipeline) // (self.partial_images + 1))
        return min(between, self.preview_every or between)

    def _steps(self, pipeline: PipelineDescription) -> int:
        """Those that will be taken."""
        names = {(self.model or "").partition(":")[2], *(each.name for each in self.lora)}
        return self.num_inference_steps or pipeline.steps_with(names)
