"""What can be asked of the server, and the tensors it travels in (the wire contract's input side)."""

import json
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .pictures import EncodedPicture, Picture, file_bytes, pixels, stacked


@dataclass(frozen=True)
class Lora:
    """A LoRA of the server's catalogue.

    Attributes:
        name: in the catalogue.
        scale: its weight; None is the server's default.
        patch_step: apply it at exactly this step, to repeat an earlier result; None leaves it to when it is loaded.
    """

    name: str
    scale: float | None = None
    patch_step: int | None = None


@dataclass(frozen=True)
class ControlNet:
    """A ControlNet of the server; what is None is left to the server.

    Attributes:
        name: of the server's.
        scale: its weight.
        start: of the part of the steps in which it steers, 0 to 1.
        end: of that part.
        guess_mode: as in diffusers.
        control_mode: of a ControlNetUnion: what its picture is; several for as many pictures.
        stale: whether a step may take the residuals of the one before it, which hides a slow link and changes the
            picture.
        picture: `inpaint` where it takes what `mask_image` leaves of `init_image`, and none of `control_images`.
    """

    name: str
    scale: float | None = None
    start: float | None = None
    end: float | None = None
    guess_mode: bool | None = None
    control_mode: int | Sequence[int] | None = None
    stale: bool | None = None
    picture: str | None = None


@dataclass(frozen=True)
class Tensor:
    """An input of the wire contract: `data` is of shape [1, ...], BYTES as objects."""

    name: str
    datatype: str
    data: npt.NDArray[Any]


@dataclass(frozen=True)
class GenerationRequest:
    """One picture. What is None or empty is not sent: the server's default applies.

    Attributes:
        prompt: what to show.
        negative_prompt: what not to show.
        seed: noise of the start; the server draws and reports one otherwise.
        steps: denoising steps.
        guidance_scale: weight of the prompt; 1 or less turns classifier-free guidance off.
        height: in pixels.
        width: in pixels.
        scheduler: name of the sampler, such as `euler` or `dpmpp_2m_karras`; one that is not allowed is answered with
            all that are.
        loras: adapters, in any order.
        lora_bound: steps that may run before the LoRAs are on; 0 waits for them.
        lora_patch_step: apply the LoRAs that have no `patch_step` of their own at exactly this step.
        controlnets: ControlNets, in the order of `control_images`.
        control_images: one picture per ControlNet and control mode, all of the same size: PIL, uint8 array [H, W, 3] or
            a file.
        request_id: handle for `cancel`; the client makes one up otherwise.
        timeout_ms: give up on the server after this long.
        clip_skip: last layers of the text encoders that the prompt goes without, as diffusers counts them.
        guidance_rescale: share of the guided prediction that gets the deviation of the prompt's own, 0 to 1; for
            zero-SNR checkpoints.
        priority: `low`, `normal` or `high`: who overtakes whom in line, at most twice.
        output_format: `png`, `webp` or `jpeg`: the server encodes the picture; `raw`, the default, sends its pixels.
        output_quality: of WebP (100 keeps every pixel) and JPEG, 1 to 100.
        output_metadata: whether a PNG says what it was made of; by default it does.
        previews: a preview every so many steps, for `stream`.
        preview_size: longer side of a preview in pixels.
        preview_decoder: `linear`, nearly for nothing, or `vae`.
        init_image: a picture to start from: PIL, uint8 array [H, W, 3], or a PNG, JPEG or WebP: its path, or its bytes.
            Without `height` and `width` the new one has its size.
        mask_image: where it is painted anew: white, in a picture like it, or uint8 array [H, W]; what is black stays.
        strength: how much of it changes, above 0 to 1: the share of the steps that are taken.
        composite: whether what the mask leaves is put back, pixel by pixel.
        mask_aware: `exact`, or `fast` or `balanced`: most steps compute masked tokens alone, which is quicker in large
            pictures and changes them a little; or what names the steps that compute all, as a mapping or its JSON:
            `{"source": "own", "exact_steps": [0, 1, 5, 9]}`.
        prompt_syntax: `plain`, or `weighted`: A1111's, such as `(word:1.3)` and BREAK, of any length.
    """

    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None
    loras: Sequence[Lora] = ()
    lora_bound: int | None = None
    lora_patch_step: int | None = None
    controlnets: Sequence[ControlNet] = ()
    control_images: Sequence[Picture] = ()
    request_id: str | None = None
    timeout_ms: int | None = None
    clip_skip: int | None = None
    guidance_rescale: float | None = None
    prompt_syntax: str | None = None
    priority: str | None = None
    output_format: str | None = None
    output_quality: int | None = None
    output_metadata: bool | None = None
    previews: int | None = None
    preview_size: int | None = None
    preview_decoder: str | None = None
    init_image: EncodedPicture | None = None
    mask_image: EncodedPicture | None = None
    strength: float | None = None
    composite: bool | None = None
    mask_aware: str | Mapping[str, object] | None = None

    def with_request_id(self) -> "GenerationRequest":
        """This request, with an id of its own if it has none."""
        return self if self.request_id is not None else replace(self, request_id=uuid.uuid4().hex)

    def with_seed(self) -> "GenerationRequest":
        """This request, with a seed of its own if it has none."""
        return self if self.seed is not None else replace(self, seed=random.getrandbits(32))

    def tensors(self) -> list[Tensor]:
        """The inputs of the wire contract that are set.

        Raises:
            ValueError: the control images differ in size, or one of all pictures is none.
        """
        tensors = [
            _scalar(name, datatype, value)
            for name, datatype, value in (
                ("PROMPT", "BYTES", self.prompt),
                ("NEGATIVE_PROMPT", "BYTES", self.negative_prompt),
                ("PROMPT_SYNTAX", "BYTES", self.prompt_syntax),
                ("SEED", "INT64", self.seed),
                ("STEPS", "INT32", self.steps),
                ("GUIDANCE_SCALE", "FP32", self.guidance_scale),
                ("HEIGHT", "INT32", self.height),
                ("WIDTH", "INT32", self.width),
                ("SCHEDULER", "BYTES", self.scheduler),
                ("GUIDANCE_RESCALE", "FP32", self.guidance_rescale),
                ("CLIP_SKIP", "INT32", self.clip_skip),
                ("LORAS", "BYTES", _entries(self.loras)),
                ("LORA_BOUND", "INT32", self.lora_bound),
                ("LORA_PATCH_STEP", "INT32", self.lora_patch_step),
                ("CONTROLNETS", "BYTES", _entries(self.controlnets)),
                ("REQUEST_ID", "BYTES", self.request_id),
                ("TIMEOUT_MS", "INT32", self.timeout_ms),
                ("PRIORITY", "BYTES", self.priority),
                ("OUTPUT_FORMAT", "BYTES", self.output_format),
                ("OUTPUT_QUALITY", "INT32", self.output_quality),
                ("OUTPUT_METADATA", "BOOL", self.output_metadata),
                ("PREVIEWS", "INT32", self.previews),
                ("PREVIEW_SIZE", "INT32", self.preview_size),
                ("PREVIEW_DECODER", "BYTES", self.preview_decoder),
                ("STRENGTH", "FP32", self.strength),
                ("COMPOSITE", "BOOL", self.composite),
                ("MASK_AWARE", "BYTES", _json_or_text("MASK_AWARE", self.mask_aware)),
            )
            if value is not None
        ]
        if self.control_images:
            tensors.append(Tensor("CONTROL_IMAGES", "UINT8", stacked(self.control_images)))
        for name, mode, picture in (("INIT_IMAGE", "RGB", self.init_image), ("MASK_IMAGE", "L", self.mask_image)):
            if picture is None:
                continue
            if (content := file_bytes(picture)) is not None:
                tensors.append(Tensor(f"ENCODED_{name}", "BYTES", np.array([[content]], dtype=np.object_)))
            else:
                tensors.append(Tensor(name, "UINT8", pixels(picture, f"the {name.lower()}", mode)[None]))
        return tensors


def pipelines_tensors() -> list[Tensor]:
    """Input of the model `pipelines`."""
    return [_scalar("PIPELINE", "BYTES", "*")]


def cancel_tensors(request_id: str) -> list[Tensor]:
    """Input of the model `cancel`."""
    return [_scalar("REQUEST_ID", "BYTES", request_id)]


_DTYPES = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "BOOL": np.bool_}


def _scalar(name: str, datatype: str, value: str | int | float) -> Tensor:
    if isinstance(value, str) != (datatype == "BYTES"):
        raise ValueError(f"{name} is {value!r}; wanted: {'a text' if datatype == 'BYTES' else 'a number'}")
    if isinstance(value, str):
        return Tensor(name, datatype, np.array([[value.encode()]], dtype=np.object_))
    try:
        with np.errstate(over="ignore"):  # infinity; the server says what is allowed
            return Tensor(name, datatype, np.array([[value]], dtype=_DTYPES[datatype]))
    except OverflowError as error:
        raise ValueError(f"{name} is {value}, which does not fit {datatype}") from error


def _json_or_text(name: str, value: str | Mapping[str, object] | None) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r}; wanted: a text, or a mapping")
    try:
        return json.dumps(dict(value))
    except TypeError as error:
        raise ValueError(f"{name} is {value!r}, which is no JSON: {error}") from error


def _entries(adapters: Sequence[Lora | ControlNet]) -> str | None:
    if not adapters:
        return None
    return json.dumps([{k: v for k, v in asdict(adapter).items() if v is not None} for adapter in adapters])
