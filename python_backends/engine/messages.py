"""What denoisers and shards say to each other: a message each way, answered at once. Needs no torch.

Nothing in a message is a path, a pointer or a file descriptor: what lies in shared memory has a key, which the receiver
may lack and ask for. Tensors travel beside the message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..common.errors import InvalidRequestError
from ..common.sentences import misread
from ..lora.files.lora_set import LoraSet
from ..request.completed import CompletedRequest, ControlNetUse
from ..request.encoding import NO_PICTURE, Encoding, PictureEncoding
from ..request.json_text import adapter
from .work import Work

T = TypeVar("T")

MAX_PID = 1 << 22
"""Linux has none beyond."""


@dataclass(frozen=True)
class Submit:
    """Run this request; answered by `Submitted`.

    Attributes:
        request: The request.
        encoding: What `text_encoder` wrote for it.
        tickets: What `lora_store` did.
        sender: Process, of this machine, that will ask after it.
        again: Whether it ran elsewhere before.
        picture: What `vae_encoder` wrote for it.
    """

    request: CompletedRequest
    encoding: Encoding
    tickets: str
    sender: Annotated[int, Field(gt=0, le=MAX_PID)]
    again: bool = False
    picture: PictureEncoding = NO_PICTURE
    op: Literal["submit"] = "submit"


@dataclass(frozen=True)
class Poll:
    """How far are these runs? Answered by `Polled`; latents come as LATENTS, one run's after another's."""

    runs: tuple[str, ...]
    op: Literal["poll"] = "poll"


@dataclass(frozen=True)
class Cancel:
    """Forget these runs, or claims."""

    runs: tuple[str, ...]
    op: Literal["cancel"] = "cancel"


@dataclass(frozen=True)
class Quote:
    """When would such a run end? Answered by `Quoted`."""

    work: Work
    op: Literal["quote"] = "quote"


@dataclass(frozen=True)
class Claim:
    """Keep a place in line for such a run; answered by `Claimed`.

    Attributes:
        work: The run's.
        limit_s: Seconds in which its denoising has to end; None without a limit.
        loosest_s: The same if the other stages took no longer than they do at best.
        hold_s: For how long the place is kept.
        helpers: How many other shards have nothing to do; 0 if this one has.
        helped_in_s: Seconds until another has nothing to do.
    """

    work: Work
    limit_s: float | None
    loosest_s: float | None
    hold_s: float
    helpers: int
    helped_in_s: float
    op: Literal["claim"] = "claim"


@dataclass(frozen=True)
class Borrow:
    """May this shard send rows for a while? Answered by `Lent`: yes, if the receiver has nothing to do."""

    home: str
    op: Literal["borrow"] = "borrow"


@dataclass(frozen=True)
class Evaluate:
    """Evaluate rows, whose tensors come beside; answered by `Evaluation` and NOISE_PRED.

    Attributes:
        home: The shard that asks.
        loras: The LoRA set of each row.
        ahead: LoRAs that the rows' requests will want.
        controls: The active ControlNets of each row.
        pixels: Height × width of their pictures.
    """

    home: str
    loras: tuple[LoraSet, ...]
    ahead: LoraSet
    controls: tuple[tuple[ControlNetUse, ...], ...]
    pixels: int
    op: Literal["evaluate"] = "evaluate"


Message = Submit | Poll | Cancel | Quote | Claim | Borrow | Evaluate


@dataclass(frozen=True)
class Submitted:
    """The run was taken up, unless it has an `error` (`errors.to_report`) or what was encoded for it is `missing`."""

    error: Mapping[str, str] | None = None
    missing: bool = False


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Attributes:
        step: Steps done.
        of: Steps in all.
        shape: Of the latents that come beside it: final ones, or what a preview is made of.
        info: INFO of a run that is done.
        error: Why it ends without a picture, as `errors.to_report` says it.
        waited_s: Seconds from its coming to its first step; None before that.
        lacks: What it waits for because that is down, in a sentence; "" while there is nothing.
        preview_step: The step that these are to be seen of; None of final ones.
    """

    step: int
    of: int
    shape: tuple[int, ...] | None = None
    info: Mapping[str, Any] | None = None
    error: Mapping[str, str] | None = None
    waited_s: float | None = None
    lacks: str = ""
    preview_step: int | None = None

    @property
    def ended(self) -> bool:
        """Whether it takes no further step."""
        return self.info is not None or self.error is not None


@dataclass(frozen=True)
class Polled:
    """Run → its state, None for one that the shard does not know; and when to look again.

    Attributes:
        runs: The states.
        boundary_s: Seconds until the step that runs should end, at least 0.
        step_s: Seconds that a step takes now.
    """

    runs: Mapping[str, RunState | None] = field(default_factory=dict)
    boundary_s: float = 0.0
    step_s: float = 0.0


@dataclass(frozen=True)
class Quoted:
    """When such a run would be done.

    Attributes:
        seconds: From now.
        alone_s: If it had the shard for itself, and the help of others where there are any.
        in_line: Rows × pixels of all that are in line.
        empty_in_s: Seconds until nobody is, if nobody comes.
        unhelped_s: If it had the shard for itself, and no help.
    """

    seconds: float
    alone_s: float
    in_line: int
    empty_in_s: float
    unhelped_s: float

    @property
    def idle(self) -> bool:
        """Whether nobody is."""
        return not self.in_line


@dataclass(frozen=True)
class Claimed:
    """A place in line; or why there is none.

    Attributes:
        id: To submit the run under, while the place is held. None for who is refused: it would be late, or would wait
            where others are refused, or the line is full.
        forecast_s: Seconds until the run should be done, or would be.
        retry_after_s: Seconds until the same claim should be accepted if nobody else comes; None for never: it would be
            late alone, with help, and at the usual pace.
    """

    id: str | None
    forecast_s: float
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Lent:
    """Whether the receiver evaluates for the shard that asks, until it has runs of its own."""

    lent: bool


@dataclass(frozen=True)
class Evaluation:
    """What came of rows: see `evaluator.Evaluated`; errors are as `errors.to_report` says them.

    Attributes:
        refused: By a shard that has runs of its own; then there is nothing else.
    """

    patch_ms: Sequence[float] = ()
    beside: Sequence[bool] = ()
    failures: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    stale: Sequence[Sequence[int]] = ()
    refused: bool = False


def to_json(message: Any) -> str:
    """A message or an answer as it travels."""
    return json.dumps(asdict(message))


def message_from_json(text: str) -> Message:
    """A message.

    Raises:
        InvalidRequestError: If the text is none (a client called an inner model by itself).
    """
    try:
        return _messages().validate_json(text)
    except ValidationError as error:
        raise InvalidRequestError(f"MESSAGE is not what denoisers and shards write: {misread(error)}") from None


def answer_from_json(kind: type[T], text: str) -> T:
    """An answer of one kind."""
    return adapter(kind).validate_json(text)


@cache
def _messages() -> TypeAdapter[Message]:
    strict = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return TypeAdapter(Annotated[Message, Field(discriminator="op")], config=strict)
