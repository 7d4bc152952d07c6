"""The form of OpenAI's `POST /v1/images/edits`, and what this project adds to it."""

from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, PrivateAttr

from ..client.pipelines import PipelineDescription
from ..client.request import GenerationRequest
from .bodies import Number
from .errors import ApiError
from .openai_fields import ImageGeneration
from .pictures import read_mask, read_size


class ImageEdit(ImageGeneration):
    """Fields of OpenAI's, and those that this project adds to generations and to edits.

    Attributes:
        image: The picture to start from: a PNG, JPEG or WebP.
        mask: Where it is painted anew: what is transparent there, or white where nothing is; absent: everywhere.
        input_fidelity: There are no grades of it; see `strength`.
        strength: How much of it changes, above 0 to 1.
        composite: Whether what the mask leaves is put back, pixel by pixel.
        mask_aware: `exact`, `fast`, `balanced`, or JSON: see the wire contract.
    """

    image: bytes
    mask: bytes | None = None
    input_fidelity: Literal["low", "high"] = "low"
    strength: Number | None = Field(None, gt=0, le=1)
    composite: bool | None = None
    mask_aware: str | None = Field(None, max_length=4096)
    _masked_by: str | None = PrivateAttr(None)

    @property
    def masked_by(self) -> str | None:
        """What of the mask is painted anew, once there is a request: `transparent` or `white`; None without a mask."""
        return self._masked_by

    def without_pictures(self) -> Self:
        """As of a generation."""
        return self.model_copy(update={"controlnet": (), "image": b"", "mask": None})

    async def request(
        self,
        pipeline: PipelineDescription,
        max_pixels: int,
        request_id: str,
        size: tuple[int, int] | None = None,
    ) -> GenerationRequest:
        """As of a generation; without a size it has the picture's."""
        own = await self._own_size(pipeline, max_pixels)
        begun = await super().request(pipeline, max_pixels, request_id, size or own)
        mask = None
        if self.mask is not None:
            mask, self._masked_by = await read_mask(self.mask, max_pixels, "mask")
        return replace(
            begun,
            init_image=self.image,
            mask_image=mask,
            strength=self.strength,
            composite=self.composite,
            mask_aware=self.mask_aware,
        )

    def _steps(self, pipeline: PipelineDescription) -> int:
        usual = pipeline.img2img_strength if self.mask is None else pipeline.inpaint_strength
        return int(super()._steps(pipeline) * (self.strength or usual or 1))

    async def _own_size(self, pipeline: PipelineDescription, max_pixels: int) -> tuple[int, int] | None:
        """Height and width of the picture, rounded down to what the pipeline makes."""
        given = await read_size(self.image, max_pixels, "image")
        if self.size != "auto":
            return None
        height, width = (side // pipeline.size_multiple * pipeline.size_multiple for side in given)
        if not 0 < min(height, width) <= max(height, width) <= pipeline.max_size:
            raise ApiError(
                400,
                f"image is {given[1]}x{given[0]}; allowed where size is auto: {pipeline.size_multiple} to "
                f"{pipeline.max_size} wide and high",
                param="size",
            )
        return height, width
