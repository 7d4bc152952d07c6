"""Units of A1111's ControlNet extension."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from .bodies import Number, validated
from .errors import ApiError

MOST_UNITS = 16

JUST_RESIZE, CROP, FILL = "Just Resize", "Crop and Resize", "Resize and Fill"
RESIZE_MODES = {0: JUST_RESIZE, 1: CROP, 2: FILL, "Scale to Fit (Inner Fit)": CROP, "Envelope (Outer Fit)": FILL}
BALANCED, OF_PROMPT, OF_CONTROLNET = CONTROL_MODES = (
    "Balanced",
    "My prompt is more important",
    "ControlNet is more important",
)


class ControlNetUnit(BaseModel):
    """One unit; preprocessors are not supported: `module` is `none`, and the picture is what the ControlNet reads.

    Attributes:
        image: base64, or with `image` in it.
        input_image: its old name.
        mask: not supported.
        model: a ControlNet of the server, also with a hash behind it, as `edges [0123abcd]`.
        module: of preprocessors none.
        weight: of its residuals.
        guidance_start: of the part of the steps in which it steers.
        guidance_end: of that part.
        control_mode: the third is diffusers' guess mode.
        resize_mode: how its picture gets the size of the other.
        enabled: whether it is used.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    image: str | dict[str, Any] | None = None
    input_image: str | None = None
    mask: None = None
    model: str = Field("None", max_length=256)
    module: Literal["none", "None", ""] = "none"
    weight: Number = 1.0
    guidance_start: Number = 0.0
    guidance_end: Number = 1.0
    control_mode: int | str = BALANCED
    resize_mode: int | str = CROP
    enabled: bool = True
    low_vram: bool = False
    processor_res: Number = 512
    threshold_a: Number = 64
    threshold_b: Number = 64
    pixel_perfect: bool = False
    hr_option: str = "Both"

    @property
    def name(self) -> str:
        """The ControlNet's."""
        return self.model.partition(" [")[0]

    @property
    def picture(self) -> str:
        """Base64 of its picture."""
        given = self.image.get("image") if isinstance(self.image, dict) else self.image
        return str(given or self.input_image or "")

    @property
    def guess_mode(self) -> bool:
        """Guess mode, diffusers' way to let the ControlNet be more important.

        Raises:
            ApiError: If the mode is none that is supported.
        """
        mode = self.control_mode
        named = CONTROL_MODES[mode] if isinstance(mode, int) and 0 <= mode < len(CONTROL_MODES) else str(mode)
        if named not in (BALANCED, OF_CONTROLNET):
            raise ApiError(400, f"control_mode is {named[:80]!r}; allowed: {BALANCED}, {OF_CONTROLNET}")
        return named == OF_CONTROLNET


def units(scripts: dict[str, Any]) -> list[ControlNetUnit]:
    """The units that are enabled among `alwayson_scripts`.

    Raises:
        ApiError: If another script is on, or a unit is none.
    """
    found: list[ControlNetUnit] = []
    for name, script in scripts.items():
        arguments = script.get("args", []) if isinstance(script, dict) else script
        if not isinstance(arguments, list):
            arguments = [arguments]
        if name.lower() == "controlnet":
            found += [_unit(position, given) for position, given in enumerate(arguments[: MOST_UNITS + 1])]
        elif any(arguments):
            raise ApiError(400, f"alwayson_scripts has {name[:80]!r}; allowed: ControlNet", param="alwayson_scripts")
    if len(found) > MOST_UNITS:
        raise ApiError(400, f"ControlNet has more than {MOST_UNITS} units; allowed: at most so many")
    return [unit for unit in found if unit.enabled]


def resized(picture: npt.NDArray[np.uint8], mode: int | str, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A picture of another shape as the extension's modes do it; one of the right shape is left to the server.

    Args:
        picture: [H, W, 3] uint8.
        mode: A name or its number.
        height: Of the picture that is made.
        width: Of the picture that is made.

    Raises:
        ApiError: If there is no such mode.
    """
    named = RESIZE_MODES.get(mode, mode)
    if named not in (JUST_RESIZE, CROP, FILL):
        raise ApiError(400, f"resize_mode is {str(mode)[:80]!r}; allowed: {JUST_RESIZE}, {CROP}, {FILL}")
    image, size, how = Image.fromarray(picture), (width, height), Image.Resampling.LANCZOS
    if named == CROP and image.width * height != image.height * width:
        return np.asarray(ImageOps.fit(image, size, how))
    if named == FILL and image.width * height != image.height * width:
        edges = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        colour = tuple(int(each) for each in np.median(edges, axis=0))
        return np.asarray(ImageOps.pad(image, size, how, color=colour))
    return np.asarray(image if image.size == size else image.resize(size, how))


def _unit(position: int, given: Any) -> ControlNetUnit:
    if not isinstance(given, dict):
        raise ApiError(400, f"ControlNet unit {position} is no object", param="alwayson_scripts")
    return validated(ControlNetUnit, given, f"ControlNet unit {position}: ", "alwayson_scripts")
