"""The body of A1111's `POST /sdapi/v1/txt2img`: what is read of it, and what may stand in it."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..client.pipelines import PipelineDescription
from ..client.request import ControlNet, GenerationRequest
from .bodies import Number
from .errors import ApiError
from .pictures import read_picture
from .webui_controlnet import ControlNetUnit, resized, units
from .webui_prompt import without_loras
from .webui_samplers import scheduler_named

MOST_PICTURES = 16
PREVIEWS = 10
"""Of a run, for `progress`; the setting `live_previews_enable` turns them off."""

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "enable_hr": (False,),
    "restore_faces": (False,),
    "tiling": (False,),
    "styles": ([],),
    "subseed_strength": (0,),
    "seed_resize_from_h": (0, -1),
    "seed_resize_from_w": (0, -1),
    "script_name": ("", "None"),
    "script_args": ([],),
    "refiner_checkpoint": ("", "None"),
    "save_images": (False,),
    "disable_extra_networks": (False,),
    "firstpass_image": ("",),
    "infotext": ("",),
    "eta": (0, 1),
    "s_churn": (0,),
    "s_tmin": (0,),
    "s_tmax": (0,),
    "s_noise": (1,),
    "s_min_uncond": (0,),
}
"""What this server does not do, and the values that do not ask for it; clients send all fields with these."""

WITHOUT_MEANING = frozenset(
    {
        "subseed",
        "denoising_strength",
        "firstphase_width",
        "firstphase_height",
        "hr_scale",
        "hr_upscaler",
        "hr_second_pass_steps",
        "hr_resize_x",
        "hr_resize_y",
        "hr_checkpoint_name",
        "hr_sampler_name",
        "hr_scheduler",
        "hr_prompt",
        "hr_negative_prompt",
        "refiner_switch_at",
        "do_not_save_samples",
        "do_not_save_grid",
        "override_settings_restore_afterwards",
        "comments",
    }
)
"""Fields that say nothing once the others are neutral."""


class Settings(BaseModel):
    """`override_settings`, as far as they are supported."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sd_model_checkpoint: str | None = Field(default=None, max_length=256)
    CLIP_stop_at_last_layers: int = Field(default=1, ge=1, le=64)
    samples_format: Literal["png", "webp", "jpg", "jpeg"] = "png"
    live_previews_enable: bool = True
    sd_vae: Literal["Automatic", "None"] = "Automatic"


class TextToImage(BaseModel):
    """What is read; see `NEUTRAL` and `WITHOUT_MEANING` for the rest of A1111's fields.

    Attributes:
        prompt: of A1111's syntax, with `<lora:NAME:SCALE>`.
        negative_prompt: likewise, without LoRAs.
        seed: of the first picture; -1: random.
        sampler_name: A1111's, or the contract's.
        sampler_index: its old name.
        scheduler: schedule type.
        steps: of denoising.
        cfg_scale: guidance.
        width: in pixels.
        height: in pixels.
        batch_size: pictures; with `n_iter` their number.
        n_iter: likewise.
        override_settings: of this request alone.
        alwayson_scripts: ControlNet; others only where they are off.
        send_images: whether the answer has them.
        force_task_id: what `progress` and `interrupt` may call it.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = NEUTRAL
    without_meaning: ClassVar[frozenset[str]] = WITHOUT_MEANING

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = Field(-1, ge=-1, le=2**63 - 1 - MOST_PICTURES)
    sampler_name: str | None = Field(None, max_length=128)
    sampler_index: str | None = Field(None, max_length=128)
    scheduler: str | None = Field(None, max_length=128)
    steps: int | None = None
    cfg_scale: Number | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int = Field(1, ge=1, le=MOST_PICTURES)
    n_iter: int = Field(1, ge=1, le=MOST_PICTURES)
    override_settings: Settings = Settings()
    alwayson_scripts: dict[str, Any] = {}
    send_images: bool = True
    force_task_id: str | None = Field(None, max_length=128)

    @model_validator(mode="before")
    @classmethod
    def _asks_for_nothing_else(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name, allowed in cls.neutral.items():
            if name in values and values[name] not in allowed:
                shown, served = json.dumps(values[name])[:80], " or ".join(map(json.dumps, allowed))
                raise ValueError(f"{name} is {shown}; allowed: {served}: it is not supported")
        left_out = cls.without_meaning.union(cls.neutral)
        return {name: value for name, value in values.items() if name not in left_out}

    @property
    def count(self) -> int:
        """Pictures.

        Raises:
            ApiError: If they are too many.
        """
        count = self.batch_size * self.n_iter
        if count > MOST_PICTURES:
            raise ApiError(400, f"batch_size times n_iter is {count}; allowed: at most {MOST_PICTURES}")
        return count

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
            size: Height and width; None: those of the fields, or the pipeline's.

        Raises:
            ApiError: If the pipeline has no such sampler, a script is not supported, or a picture is none.
        """
        settings = self.override_settings
        height, width = size or (self.height or pipeline.height, self.width or pipeline.width)
        prompt, loras = without_loras(self.prompt)
        asked = units(self.alwayson_scripts)
        if len(asked) > pipeline.max_controlnets:
            said = f"ControlNet has {len(asked)} units; allowed: at most {pipeline.max_controlnets}"
            raise ApiError(400, said, param="alwayson_scripts")
        sides = tuple(max(1, min(side, pipeline.max_size)) for side in (height, width))  # the server refuses others
        pictures = []
        for position, unit in enumerate(asked):
            picture = await read_picture(self._shown_to(unit), max_pixels, f"ControlNet unit {position}: image")
            pictures.append(await asyncio.to_thread(resized, picture, unit.resize_mode, *sides))
        steps = self._steps(pipeline, frozenset(lora.name for lora in loras))
        return GenerationRequest(
            prompt=prompt,
            negative_prompt=self.negative_prompt or None,
            prompt_syntax="weighted",
            seed=None if self.seed < 0 else self.seed,
            steps=self.steps,
            guidance_scale=self.cfg_scale,
            height=size[0] if size else self.height,
            width=size[1] if size else self.width,
            scheduler=scheduler_named(pipeline, self.sampler_name or self.sampler_index, self.scheduler),
            clip_skip=settings.CLIP_stop_at_last_layers - 1 or None,
            loras=loras,
            controlnets=tuple(_controlnet(unit) for unit in asked),
            control_images=pictures,
            request_id=request_id,
            output_format=self.file_format,
            previews=max(1, steps // PREVIEWS) if settings.live_previews_enable else None,
        )

    def finished(self, content: bytes) -> bytes:
        """A file of the server's as the answer has it."""
        return content

    @property
    def file_format(self) -> str:
        """Of the answer's files, in the contract's words."""
        return self.override_settings.samples_format.replace("jpg", "jpeg")

    @property
    def echo(self) -> dict[str, Any]:
        """What the answer's `parameters` are."""
        return self.model_dump(exclude={"alwayson_scripts", "init_images", "mask"})

    def _shown_to(self, unit: ControlNetUnit) -> str:
        """Base64 of the picture of a unit."""
        return unit.picture

    def _steps(self, pipeline: PipelineDescription, loras: frozenset[str]) -> int:
        """Those that will be taken."""
        return self.steps or pipeline.steps_with(loras)


def _controlnet(unit: ControlNetUnit) -> ControlNet:
    return ControlNet(
        unit.name, unit.weight, unit.guidance_start, unit.guidance_end, guess_mode=unit.guess_mode or None
    )
