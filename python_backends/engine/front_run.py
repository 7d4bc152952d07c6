"""One request of a denoiser, and what is told of it at its end. Needs no torch."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..backend.request_ends import Ending
from ..common.errors import RequestCancelledError, RequestError
from .messages import RunState, Submit

if TYPE_CHECKING:
    import numpy as np

    from ..request.completed import CompletedRequest

DOWN_S = 120.0
"""Longest that a request waits for models that are down."""

NOTHING_YET = RunState(0, 0)


@dataclass(eq=False)
class FrontRun:
    """One request.

    Attributes:
        message: What a shard is told of it.
        shard: That has it; None while none does.
        starts: How often it was started.
        state: What is known of it.
        told: Steps that its client was told of.
        latents: [1, C, h, w] float32, once it is done.
        preview: After which step something of it can be seen, and the latents to show, like those.
        failure: Why it ends without a picture, once it does.
        joined: When it came, in seconds of the monotonic clock.
        waits_since: Since when something that it needs next is down, likewise; None while nothing is.
        decoders: Processes of the decoder that it is bound to.
        held: Leases on its pictures, given up at its end or with the decoder's.
        in_hand: The server's request, until this round has ended.
    """

    message: Submit
    shard: str | None = None
    starts: int = 0
    state: RunState = NOTHING_YET
    told: int = 0
    latents: np.ndarray | None = None
    preview: tuple[int, np.ndarray] | None = None
    failure: RequestError | None = None
    joined: float = field(default_factory=time.monotonic)
    waits_since: float | None = None
    decoders: frozenset[int] = frozenset()
    held: ExitStack = field(default_factory=ExitStack)
    in_hand: Any = None

    @property
    def request(self) -> CompletedRequest:
        """The request."""
        return self.message.request

    def waits(self) -> bool:
        """Whether it may wait on for something that is down; if not, it ends."""
        now = time.monotonic()
        if self.waits_since is None:
            self.waits_since = now
        return now - self.waits_since < DOWN_S

    @property
    def place(self) -> str:
        """How far it is, for messages."""
        return f"after step {max(self.told, self.state.step)} of {self.state.of or self.request.steps}"


def info_of(run: FrontRun) -> dict[str, Any]:
    """INFO of a run that is done, with its time here and what it was forecast, in milliseconds."""
    info, now = json.loads(json.dumps(run.state.info)), time.monotonic()
    info["timings_ms"]["denoiser"] = round(1000 * (now - run.joined), 3)
    if run.request.claim is not None:
        info["forecast_ms"] = round(1000 * run.request.claim.forecast_s, 3)
        info["forecast_came_to_ms"] = round(1000 * (now - run.request.claim.at), 3)
    return info


def ending_of(run: FrontRun) -> Ending | None:
    """What is told of a run at its end, as far as it came."""
    arrival, now = run.request.arrival, time.monotonic()
    if arrival is None:
        return None
    here_s, waited_s = now - run.joined, run.state.waited_s
    came_s = max(0.0, now - here_s - arrival.at - arrival.prepared_s)
    stages = {"encoding": came_s, "waiting": here_s if waited_s is None else waited_s}
    if waited_s is not None:
        stages["denoising"] = max(0.0, here_s - waited_s)
    return Ending.of(run.request, **stages)


def cancelled(run: FrontRun) -> RequestCancelledError:
    """What the client of a cancelled request is told."""
    return RequestCancelledError(f'REQUEST_ID "{run.request.request_id}" was cancelled {run.place}')
