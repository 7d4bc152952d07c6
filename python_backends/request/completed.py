"""A request with every value filled in, as it travels from `preprocess` to the other models."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from .editing import Edit, ImageKey
from .json_text import read_json
from .outputs import FileOutput, Previews

Pixels = Annotated[int, Field(ge=1, le=16384)]
RunId = Annotated[str, StringConstraints(pattern="^[0-9A-Za-z_-]{1,64}$")]
"""Files are called after it."""


@dataclass(frozen=True)
class LoraUse:
    """One LoRA of a request.

    Attributes:
        name: In the catalogue.
        scale: Multiplies its deltas.
        bound: k: steps that may run before it is on; 0 is exact.
        patch_step: The one step boundary at which it is to go on, or None.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: str
    scale: float
    bound: Annotated[int, Field(ge=0)]
    patch_step: Annotated[int, Field(ge=0)] | None = None


@dataclass(frozen=True)
class StepHistory:
    """Where a step's residuals are kept for the next one.

    Attributes:
        run: Of the request.
        half: Of its guidance.
        position: Of the ControlNet in the request.
        step: The step.
        is_last: Whether no further step wants them.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    run: str
    half: int
    position: int
    step: int
    is_last: bool

    @property
    def key(self) -> tuple[str, int, int]:
        """The same in every step."""
        return self.run, self.half, self.position


@dataclass(frozen=True)
class ControlNetUse:
    """One ControlNet of a request.

    Attributes:
        name: Of the model, without `controlnet_`.
        images: Keys of its pictures among the server's `Pictures`: one, or one per control mode.
        scale: Multiplies its residuals.
        start: Fraction of the steps before which it is not used.
        end: Fraction of the steps after which it is not used.
        guess_mode: As in diffusers: not for the unconditional half, and weaker the shallower the residual.
        control_modes: Of a ControlNetUnion: what each picture is; else empty.
        sole: Whether it is the request's only one. The scale of a union's several pictures is then their own, as in
            diffusers.
        stale: Whether a step may take the residuals of the one before it.
        history: Of the step, once there is one, for a stale use.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: str
    images: Annotated[tuple[ImageKey, ...], Field(min_length=1, max_length=16)]
    scale: float
    start: float
    end: float
    guess_mode: bool
    control_modes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=16)] = ()
    sole: bool = True
    stale: bool = False
    history: StepHistory | None = None

    @property
    def scales_pictures(self) -> bool:
        """Whether the scale is for a union's pictures rather than for the residuals."""
        return self.sole and len(self.control_modes) > 1

    def is_active(self, step: int, steps: int) -> bool:
        """Whether it contributes to a step of so many, by the rule of diffusers' `controlnet_keep`.

        A union that scales its pictures contributes to every step: without pictures it has residuals still.
        """
        return self.scales_pictures or self.scale_at(step, steps) != 0

    def rows(self, halves: int, steps: int) -> int:
        """Rows that it evaluates in so many steps of a request of one or two halves."""
        return (1 if self.guess_mode else halves) * sum(self.is_active(step, steps) for step in range(steps))

    def scale_at(self, step: int, steps: int) -> float:
        """Its scale in a step of so many: 0 outside its window."""
        return 0.0 if step / steps < self.start or (step + 1) / steps > self.end else self.scale


Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = ("low", "normal", "high")


@dataclass(frozen=True)
class PlaceClaim:
    """A place in a shard's line, claimed before the request is encoded.

    Attributes:
        shard: Whose line.
        id: Of the claim.
        forecast_s: Seconds from then in which denoising should end.
        at: When it was claimed, in seconds of the monotonic clock.
        due: When the picture should be there, likewise; None without a limit.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    shard: str
    id: str
    forecast_s: float
    at: float
    due: float | None = None


@dataclass(frozen=True)
class Arrival:
    """When a request came, and where.

    Attributes:
        pipeline: The public model.
        at: In seconds of the monotonic clock.
        prepared_s: Seconds that `preprocess` took for it.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    pipeline: str
    at: float
    prepared_s: float = 0.0


@dataclass(frozen=True)
class CompletedRequest:
    """A request whose values `preprocess` has checked against the checkpoint's rules.

    Attributes:
        run_id: Random; what a denoiser knows the run by (a client chooses its sequence id, never this).
        prompt: The prompt.
        negative_prompt: None where the client sent none: then diffusers' rule for an absent one applies.
        seed: Seed of the request's own CPU generator.
        steps: Inference steps as diffusers counts them.
        guidance_scale: Classifier-free guidance; at most 1 means none.
        height: Pixels.
        width: Pixels.
        scheduler: A name of the contract, or None for the checkpoint's own.
        request_id: Handle for cancelling, or None.
        deadline: When the request is given up, in seconds of the monotonic clock, which all models share and nobody
            sets; or None.
        loras: In the client's order.
        lora_defaults: Field that the client left out → the LoRA whose default it took.
        controlnets: In the client's order.
        clip_skip: Last layers of the text encoders that the prompt goes without, as in diffusers; None: its default.
        guidance_rescale: Share of the guided prediction that gets the deviation of the prompt's own, 0 to 1.
        max_chunks: Most chunks that a prompt of the weighted syntax may fill; None: the plain syntax.
        priority: Who overtakes whom in line, within bounds.
        claim: Its place there, if it has one.
        evaluations: Of the UNet, in all; None: one in each step.
        halves: That it evaluates in each; None: both with guidance, else one.
        arrival: When it came, and where; None if that was not at a server.
        output: The file that its picture becomes; None for raw pixels.
        previews: What its client sees on the way; None for nothing.
        edit: The picture that it begins with; None for noise alone.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    run_id: RunId
    prompt: str
    negative_prompt: str | None
    seed: int
    steps: Annotated[int, Field(ge=1, le=10_000)]
    guidance_scale: float
    height: Pixels
    width: Pixels
    scheduler: str | None
    request_id: str | None = None
    deadline: float | None = None
    loras: Annotated[tuple[LoraUse, ...], Field(max_length=64)] = ()
    controlnets: Annotated[tuple[ControlNetUse, ...], Field(max_length=16)] = ()
    lora_defaults: dict[str, str] = field(default_factory=dict)
    clip_skip: Annotated[int, Field(ge=0)] | None = None
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_chunks: Annotated[int, Field(ge=1, le=64)] | None = None
    priority: Priority = "normal"
    claim: PlaceClaim | None = None
    evaluations: Annotated[int, Field(ge=1, le=100_000)] | None = None
    halves: Annotated[int, Field(ge=1, le=2)] | None = None
    arrival: Arrival | None = None
    output: FileOutput | None = None
    previews: Previews | None = None
    edit: Edit | None = None

    @property
    def pictures(self) -> tuple[str, ...]:
        """Keys of all that it needs."""
        of_controls = [key for use in self.controlnets for key in use.images]
        return (*of_controls, *(self.edit.keys if self.edit else ()))

    @property
    def due(self) -> float | None:
        """When its picture should be there, in seconds of the monotonic clock; None without a limit."""
        return self.deadline if self.claim is None else self.claim.due

    def to_json(self) -> str:
        """The request as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CompletedRequest:
        """The request that `to_json` wrote.

        Raises:
            InvalidRequestError: If the text is anything else (a client called an inner model by itself).
        """
        return read_json(cls, text, "REQUEST is not what `preprocess` writes", says_where=True)


def use_to_json(use: ControlNetUse) -> str:
    """A ControlNet of one row, as its model is told of it."""
    return json.dumps(asdict(use))


def use_from_json(text: str) -> ControlNetUse:
    """What `use_to_json` wrote.

    Raises:
        InvalidRequestError: If the text is anything else (a client called an inner model by itself).
    """
    return read_json(ControlNetUse, text, "CONTROL is not what a shard writes")
