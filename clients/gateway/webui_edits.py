"""The body of A1111's `POST /sdapi/v1/img2img`: beside that of `txt2img`, the picture to start from and its mask."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from ..client.pipelines import PipelineDescription
from ..client.request import GenerationRequest
from .bodies import Number
from .errors import ApiError
from .pictures import flattened, opened, picture_bytes
from .webui_controlnet import ControlNetUnit
from .webui_fields import NEUTRAL, WITHOUT_MEANING, TextToImage
from .webui_masks import STRETCHED, Box, Overlay, Pixels, blurred, doubled, fitted, mask_of, surroundings

ORIGINAL = 1
"""The one `inpainting_fill` that there is: what is painted anew begins with the picture itself."""
Switch = Annotated[Literal[0, 1], BeforeValidator(lambda given: int(given) if isinstance(given, bool) else given)]
BLUR, MOST_BLUR, MOST_PADDING = 4, 64, 4096


class ImageToImage(TextToImage):
    """What is read of it.

    Attributes:
        init_images: base64 of the picture; white is behind what is transparent in it.
        mask: base64 of one: where it is painted anew; what is white, or where it has transparency what is opaque.
        mask_blur: deviation of the mask's soft edge in its pixels; over `mask_blur_x` and `mask_blur_y`.
        denoising_strength: how much changes.
        inpainting_fill: of a mask, what it begins with.
        inpaint_full_res: of a mask, whether its surroundings alone are painted, larger or smaller.
        inpaint_full_res_padding: pixels of the surroundings.
        inpainting_mask_invert: 1: what is black is painted anew.
        include_init_images: whether the answer's `parameters` have the pictures.
        resize_mode: how picture and mask get the size of the new one: stretched, cut, or filled at the edges.
    """

    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **NEUTRAL,
        "initial_noise_multiplier": (1,),
        "latent_mask": ("",),
        "mask_round": (True,),
    }
    without_meaning: ClassVar[frozenset[str]] = WITHOUT_MEANING - {"denoising_strength"} | {"image_cfg_scale"}

    init_images: list[str] = Field(min_length=1, max_length=1)
    mask: str | None = None
    mask_blur: int | None = Field(None, ge=0, le=MOST_BLUR)
    mask_blur_x: int = Field(BLUR, ge=0, le=MOST_BLUR)
    mask_blur_y: int = Field(BLUR, ge=0, le=MOST_BLUR)
    denoising_strength: Number = Field(0.75, gt=0, le=1)
    inpainting_fill: int = 0
    inpaint_full_res: Switch = 1
    inpaint_full_res_padding: int = Field(0, ge=0, le=MOST_PADDING)
    inpainting_mask_invert: Switch = 0
    include_init_images: bool = False
    resize_mode: Literal[0, 1, 2] = 0
    _overlay: Overlay | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _has_a_mask_that_is_served(self) -> Self:
        if self.mask and self.inpainting_fill != ORIGINAL:
            raise ValueError(f"inpainting_fill is {self.inpainting_fill}; allowed with a mask: {ORIGINAL} (original)")
        return self

    async def request(
        self,
        pipeline: PipelineDescription,
        max_pixels: int,
        request_id: str,
        size: tuple[int, int] | None = None,
    ) -> GenerationRequest:
        """As of `txt2img`; without height and width it has the picture's."""
        picture = await opened(picture_bytes(self.init_images[0], "init_images"), max_pixels, "init_images", flattened)
        mask = None
        if self.mask:
            mask = await opened(picture_bytes(self.mask, "mask"), max_pixels, "mask", mask_of)
        multiple = pipeline.size_multiple
        own = (max(multiple, min(side, pipeline.max_size) // multiple * multiple) for side in picture.shape[:2])
        own_height, own_width = own
        height, width = size or (self.height or own_height, self.width or own_width)
        begun = await super().request(pipeline, max_pixels, request_id, (height, width))
        begun = replace(begun, init_image=picture, mask_image=mask, strength=self.denoising_strength)
        if not 0 < min(height, width) <= max(height, width) <= pipeline.max_size:
            return begun  # which the server refuses
        return await asyncio.to_thread(self._in_size, begun, picture, mask, height, width)

    def finished(self, content: bytes) -> bytes:
        """With what the mask leaves laid over it, where the server does not do that."""
        overlay = self._overlay
        return content if overlay is None else overlay.finished(content, self.file_format)

    @property
    def echo(self) -> dict[str, Any]:
        """With the pictures, should they be wanted."""
        pictures = {"init_images": self.init_images, "mask": self.mask} if self.include_init_images else {}
        return {**super().echo, "init_images": None, "mask": None, **pictures}

    def _shown_to(self, unit: ControlNetUnit) -> str:
        return unit.picture or self.init_images[0]

    def _steps(self, pipeline: PipelineDescription, loras: frozenset[str]) -> int:
        return int(super()._steps(pipeline, loras) * self.denoising_strength)

    def _in_size(
        self, begun: GenerationRequest, picture: Pixels, mask: Pixels | None, height: int, width: int
    ) -> GenerationRequest:
        """The request in the size of the new picture; what its mask leaves is put back by the server or, softly, here.

        Raises:
            ApiError: If the mask has nothing, or a part is to be painted whose ControlNets see the whole.
        """
        if mask is None:
            return replace(begun, init_image=fitted(picture, self.resize_mode, height, width))
        if self.inpainting_mask_invert:
            mask = np.bitwise_not(mask)
        if not mask.any():
            raise ApiError(400, "mask paints nothing anew; allowed: one that does", param="mask")
        if self.inpaint_full_res and begun.controlnets:
            said = "inpaint_full_res is true; allowed with a mask and ControlNet units: false"
            raise ApiError(400, said, param="inpaint_full_res")
        if self.inpaint_full_res:
            return self._part_alone(begun, picture, mask, height, width)
        is_sharp = self._blur == (0, 0)
        mask = fitted(mask, self.resize_mode, height, width) if is_sharp else self._soft(mask, height, width)
        picture = fitted(picture, self.resize_mode, height, width)
        begun = replace(begun, init_image=picture, mask_image=mask)
        if is_sharp:
            return replace(begun, composite=True)
        return self._laid_over(begun, Overlay(picture, doubled(mask), (0, 0, width, height)))

    def _soft(self, mask: Pixels, height: int, width: int) -> Pixels:
        return fitted(blurred(mask, *self._blur), self.resize_mode, height, width)

    def _part_alone(
        self, begun: GenerationRequest, picture: Pixels, mask: Pixels, height: int, width: int
    ) -> GenerationRequest:
        """What is around the mask, in the size of the new picture; the answer has the old one's."""
        mask = blurred(fitted(mask, STRETCHED, *picture.shape[:2]), *self._blur)
        place = surroundings(mask, self.inpaint_full_res_padding, width, height) or (
            0,
            0,
            picture.shape[1],
            picture.shape[0],
        )
        parts = (fitted(_within(each, place), STRETCHED, height, width) for each in (picture, mask))
        begun = replace(begun, init_image=next(parts), mask_image=next(parts))
        return self._laid_over(begun, Overlay(picture, mask, place))

    def _laid_over(self, begun: GenerationRequest, overlay: Overlay) -> GenerationRequest:
        """What is finished here comes from the server without loss."""
        self._overlay = overlay
        return replace(begun, output_format="png")

    @property
    def _blur(self) -> tuple[int, int]:
        if self.mask_blur is not None:
            return self.mask_blur, self.mask_blur
        return self.mask_blur_x, self.mask_blur_y


def _within(pixels: Pixels, place: Box) -> Pixels:
    left, top, right, bottom = place
    return pixels[top:bottom, left:right]
