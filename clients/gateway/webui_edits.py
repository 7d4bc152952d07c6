"""The body of A1111's `POST /sdapi/v1/img2img`: beside that of `txt2img`, the picture to start from and its mask."""

import asyncio
from dataclasses import replace
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from ..client.pipelines import PipelineDescription
from ..client.request import GenerationRequest
from .bodies import Number
from .pictures import picture_bytes, read_mask, read_picture
from .webui_controlnet import resized
from .webui_fields import WITHOUT_MEANING, TextToImage

ORIGINAL = 1
"""The one `inpainting_fill` that there is: what is painted anew begins with the picture itself."""


class ImageToImage(TextToImage):
    """What is read of it.

    Attributes:
        init_images: base64 of the picture.
        mask: base64 of one: where it is painted anew; white, or what is transparent.
        denoising_strength: how much changes.
        inpainting_fill: of a mask, what it begins with.
        inpaint_full_res: of a mask, whether its surroundings alone are painted, larger.
        inpainting_mask_invert: 1: what is black is painted anew.
        mask_blur: not read: latents have no half-painted cells.
        resize_mode: how picture and mask get the size of the new one.
    """

    without_meaning: ClassVar[frozenset[str]] = WITHOUT_MEANING - {"denoising_strength"} | {
        "image_cfg_scale",
        "inpaint_full_res_padding",
        "mask_blur",
        "mask_blur_x",
        "mask_blur_y",
    }

    init_images: tuple[str, ...] = Field(min_length=1, max_length=1)
    mask: str | None = None
    denoising_strength: Number = Field(0.75, gt=0, le=1)
    inpainting_fill: int = 0
    inpaint_full_res: bool | int = True
    inpainting_mask_invert: Literal[0, 1] = 0
    initial_noise_multiplier: Literal[1] | None = 1
    include_init_images: bool = False
    resize_mode: int = 0

    @model_validator(mode="after")
    def _has_a_mask_that_is_served(self) -> Self:
        if self.mask is not None and self.inpainting_fill != ORIGINAL:
            raise ValueError(f"inpainting_fill is {self.inpainting_fill}; allowed with a mask: {ORIGINAL} (original)")
        if self.mask is not None and self.inpaint_full_res:
            raise ValueError("inpaint_full_res is true; allowed with a mask: false (the whole picture)")
        return self

    async def request(
        self,
        pipeline: PipelineDescription,
        max_pixels: int,
        request_id: str,
        size: tuple[int, int] | None = None,
    ) -> GenerationRequest:
        """As of `txt2img`; without height and width it has the picture's."""
        picture = await read_picture(self.init_images[0], max_pixels, "init_images[0]")
        multiple = pipeline.size_multiple
        own = (max(multiple, min(side, pipeline.max_size) // multiple * multiple) for side in picture.shape[:2])
        height, width = (named or side for named, side in zip((self.height, self.width), own, strict=True))
        begun = await super().request(pipeline, max_pixels, request_id, size or (height, width))
        mask = None if self.mask is None else await self._mask(self.mask, max_pixels, height, width)
        return replace(
            begun,
            init_image=await asyncio.to_thread(self._fitted, picture, pipeline, height, width),
            mask_image=mask,
            strength=self.denoising_strength,
            composite=None if mask is None else True,  # as A1111 does
        )

    def _fitted(
        self, picture: npt.NDArray[np.uint8], pipeline: PipelineDescription, height: int, width: int
    ) -> npt.NDArray[np.uint8]:
        """What is larger than allowed, the server refuses."""
        within = 0 < min(height, width) <= max(height, width) <= pipeline.max_size
        return resized(picture, self.resize_mode, height, width) if within else picture

    async def _mask(self, text: str, max_pixels: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        mask, _ = await read_mask(picture_bytes(text, "mask"), max_pixels, "mask")
        mask = np.bitwise_not(mask) if self.inpainting_mask_invert else mask
        shown = np.repeat(mask[..., None], 3, axis=2)
        return (await asyncio.to_thread(resized, shown, self.resize_mode, height, width))[..., 0]
