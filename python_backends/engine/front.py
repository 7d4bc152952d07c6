"""A denoiser's requests on their way through the shards: each a run of one of them, started again where that dies.

A run is a pure function of its request, so that nothing is lost with a shard but time. Needs no torch.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ..backend.model_calls import down, encode_picture, encode_prompts, load_loras, traced
from ..common.errors import (
    EmbeddingsUnavailableError,
    ModelDownError,
    RequestError,
    RequestTimeoutError,
    from_report,
)
from ..common.pulse import is_up
from ..request.completed import CompletedRequest
from ..request.encoding import Encoding, PictureEncoding
from .admission import best_first
from .front_run import FrontRun, cancelled
from .messages import Submit
from .work import Work

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..backend.stage_times import StageTime
    from ..request.cancellation import RequestRegistry
    from ..shared_memory.pictures import Pictures
    from .messages import Polled
    from .shard_metrics import LineGauges
    from .shards import Shards

MAX_STARTS = 3
"""A run whose shard dies more often ends its request: it may be what kills them."""

MIN_PAUSE_S, FIRST_PAUSE_S, MAX_PAUSE_S = 0.001, 0.005, 0.025
"""Between two looks at the shards; for the longest of them a new request may lie here."""

OVERDUE_LOOKS = 10
"""In the time of a step, after one that should have ended."""


class Front:
    """The running requests of one denoiser."""

    def __init__(
        self,
        shards: Shards,
        text_encoder: str,
        vae_encoder: str,
        lora_store: str,
        registry: RequestRegistry,
        pictures: Pictures,
        before: StageTime,
        line: LineGauges,
        name: str,
        every_step: bool,
    ) -> None:
        """Has none yet.

        Args:
            shards: Where they run.
            text_encoder: Encodes prompts again whose embeddings have gone.
            vae_encoder: Encodes pictures again, likewise.
            lora_store: Loads LoRAs again for runs that start again.
            registry: Says who is cancelled.
            pictures: Of requests, held while they run.
            before: Of requests on their way here.
            line: Of the pipeline.
            name: Of the denoiser.
            every_step: Whether clients are told of each step, not of the last alone.
        """
        self._shards, self._lora_store = shards, lora_store
        self._text_encoder, self._vae_encoder = text_encoder, vae_encoder
        self._registry, self._pictures, self._before = registry, pictures, before
        self._line, self._name = line, name
        self._every_step = every_step
        self._runs: dict[bytes, FrontRun] = {}
        self._look_at = 0.0
        self._show_homeless()

    def take_up(self, text: bytes, encoding: str, picture: str, tickets: str) -> FrontRun:
        """The run of a request that the server hands over, the first time or again.

        Args:
            text: REQUEST.
            encoding: ENCODING.
            picture: LATENT_KEYS.
            tickets: TICKETS.

        Raises:
            RequestError: If it is none, or cannot be taken up.
        """
        run = self._runs.get(text)
        if run is None:
            request = CompletedRequest.from_json(text.decode("utf-8"))
            encoded = Encoding.from_json(encoding), PictureEncoding.from_json(picture)
            run = FrontRun(Submit(request, encoded[0], tickets, os.getpid(), picture=encoded[1]))
            with ExitStack() as held:
                for key in request.pictures:
                    held.enter_context(self._pictures.lease(key))
                if request.request_id is not None:
                    self._registry.enter(request.request_id, request.run_id)
                run.held = held.pop_all()
            self._runs[text] = run
        return run

    def advance(self, runs: Iterable[FrontRun]) -> None:
        """Brings every run up to date: starts those that no shard has, ends those that are to end, asks after the rest.

        Looks at the shards when there should be something to tell, and waits for that time here.
        """
        going = [run for run in runs if run.failure is None and run.latents is None]
        for run in going:
            run.failure = self._stopped(run)
            if run.failure is None and run.shard is None:
                with traced(run.in_hand):
                    self._start(run)
        self._show_homeless()
        time.sleep(max(0.0, self._look_at - time.monotonic()))
        pauses = [MAX_PAUSE_S]
        for shard in self._shards.names:
            theirs = {run.request.run_id: run for run in going if run.shard == shard and run.failure is None}
            if theirs:
                pauses.append(self._look(shard, theirs))
        self._look_at = time.monotonic() + max(MIN_PAUSE_S, min(pauses))

    def end(self, text: bytes) -> bool:
        """Forgets a request, whether it was taken up or not; whether it was cancelled, in its last step even.

        What its run holds is the caller's from then on.
        """
        run = self._runs.pop(text, None)
        if run is None:
            return False
        self._show_homeless()
        if run.shard is not None and not run.state.ended:
            with suppress(RequestError):  # it died with its runs
                self._shards.cancel(run.shard, [run.request.run_id])
        request = run.request
        return request.request_id is not None and self._registry.leave(request.request_id, request.run_id)

    def _stopped(self, run: FrontRun) -> RequestError | None:
        request = run.request
        if request.request_id is not None and self._registry.is_cancelled(request.request_id, request.run_id):
            return cancelled(run)
        if request.deadline is not None and time.monotonic() > request.deadline:
            lacks = f"; {run.state.lacks}" if run.state.lacks else ""
            return RequestTimeoutError(f"TIMEOUT_MS passed {run.place}{lacks}")
        return None

    def _start(self, run: FrontRun) -> None:
        """Has the shard that would be done first run it; while what that takes is down, it waits."""
        request, claim = run.request, run.request.claim
        try:
            if claim is not None and run.starts == 0 and is_up(claim.shard):
                shard = claim.shard
            else:
                shard = best_first(self._shards.quotes(Work.of(request)))[0][1]
            if run.starts:
                run.message = replace(run.message, again=True)
                if request.loras:  # who had the tickets may have taken what they bring
                    run.message = replace(run.message, tickets=load_loras(self._lora_store, request))
            self._submit(run, shard)
        except ModelDownError as error:
            run.state = replace(run.state, lacks=str(error))
            if not run.waits():
                run.failure = error
        except RequestError as error:
            run.failure = error

    def _submit(self, run: FrontRun, shard: str) -> None:
        answer = self._shards.submit(shard, run.message)
        if answer.missing:
            encoding = encode_prompts(self._text_encoder, run.request, run.message.tickets)
            run.message = replace(run.message, encoding=encoding)
            if run.request.edit is not None:
                run.message = replace(run.message, picture=encode_picture(self._vae_encoder, run.request))
            answer = self._shards.submit(shard, run.message)
        if answer.error is not None:
            run.failure = from_report(dict(answer.error))
        elif answer.missing:
            names = "PROMPT: its embeddings" if run.request.edit is None else "PROMPT, INIT_IMAGE: their encodings"
            run.failure = EmbeddingsUnavailableError(f"{names} went before they were used; try again")
        else:
            claim = run.request.claim
            if claim is not None and claim.shard == shard and run.starts == 0 and run.waits_since is None:
                self._before.note(max(0.0, time.monotonic() - claim.at))
            run.shard, run.waits_since = shard, None
            run.starts += 1

    def _look(self, shard: str, runs: dict[str, FrontRun]) -> float:
        """Asks a shard after its runs; seconds until it is worth asking again."""
        try:
            polled, latents = self._shards.poll(shard, runs)
        except RequestError as error:
            if isinstance(error, ModelDownError):
                self._line.show(shard, 0)
            for run in runs.values():
                self._lose(run, error)
            return MIN_PAUSE_S
        for run_id, run in runs.items():
            state = polled.runs.get(run_id)
            if state is None:
                self._lose(run, down(shard))
                continue
            run.state = state
            if state.preview_step is not None:
                run.preview = state.preview_step, latents[run_id]
            else:
                run.latents = latents.get(run_id)
            if state.error is not None:
                run.failure = from_report(dict(state.error))
        return self._news_in(polled)

    def _news_in(self, polled: Polled) -> float:
        """Seconds until a shard that is as it says should have something to tell: that a step has ended, or a run."""
        if not polled.step_s:
            return FIRST_PAUSE_S
        left = min((state.of - state.step for state in polled.runs.values() if state and not state.ended), default=1)
        steps_between = 0 if self._every_step else max(0, left - 1)
        return polled.boundary_s + steps_between * polled.step_s or polled.step_s / OVERDUE_LOOKS

    def _show_homeless(self) -> None:
        """Runs that no shard has."""
        self._line.show(self._name, sum(run.shard is None for run in self._runs.values()))

    @staticmethod
    def _lose(run: FrontRun, error: RequestError) -> None:
        """A run is gone with its shard: it starts again elsewhere, unless it has gone too often."""
        run.shard = None
        if run.starts >= MAX_STARTS:
            run.failure = error
