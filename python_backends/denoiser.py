"""The models `denoiser` and `denoiser_stream`: they bring requests to the shards that run them, and latents back.

Both are iterative sequences: Triton hands a request over again until it is released, and those that arrived in the
meantime with it; so a dead denoiser fails its requests at once. `execute` is synchronous on purpose: in a decoupled
model an asynchronous one returns before the reschedule flag is set, and the sequence hangs.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .backend import metrics
from .backend.model import Model
from .backend.model_calls import down
from .backend.request_ends import Ending, RequestEnds
from .backend.responses import as_request_error, error_response
from .backend.settings import ModelSettings, input_bytes, input_text, text_tensor
from .backend.stage_times import BEFORE, StageTime
from .common.errors import InvalidRequestError, RequestError, to_report
from .common.pulse import ups
from .engine.front import Front
from .engine.front_run import FrontRun, cancelled, ending_of, info_of
from .engine.handed_over import HandedOver
from .engine.handover import Handover, Report
from .engine.shard_metrics import LineGauges
from .engine.shards import Shards
from .request.cancellation import RequestRegistry
from .request.completed import CompletedRequest
from .shared_memory.pictures import Pictures

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


RATIO_BUCKETS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)


class TritonPythonModel(Model):
    """Hands requests on, and says how far they are."""

    def load(self, args: Mapping[str, str]) -> None:
        """Reads the names of the shards from the parameters."""
        settings = ModelSettings.from_triton(args)
        self._decoupled = pb_utils.using_decoupled_model_transaction_policy(dict(settings.config))
        self._channels = int(settings.parameters["latent_channels"])
        self._vae_decoder = settings.parameters["vae_decoder"]
        self._pipeline = settings.parameters["pipeline"]
        self._ends = RequestEnds()
        self._handed_over = HandedOver(self._ends)
        self._handed_over.look_for_ended()
        self._front = Front(
            Shards(settings.parameters["unet_shards"].split(",")),
            settings.parameters["text_encoder"],
            settings.parameters["vae_encoder"],
            settings.parameters["lora_store"],
            RequestRegistry(),
            Pictures(),
            StageTime(BEFORE, self._pipeline),
            LineGauges(self._pipeline),
            settings.name,
            every_step=self._decoupled,
        )
        self._forecasts = metrics.Histogram(
            "swiftdiffusion_forecast_ratio", "Time to final latents ÷ its forecast at admission", RATIO_BUCKETS
        )

    def respond(self, requests: list[Any]) -> list[Any] | None:
        """A response for every request that has ended; decoupled, for every step that was taken since the last call."""
        texts = [input_bytes(request, "REQUEST") for request in requests]
        runs = [self._take_up(request, text) for request, text in zip(requests, texts, strict=True)]
        taken = [run for run in runs if isinstance(run, FrontRun)]
        self._end_undecodable(taken)
        try:
            self._front.advance(taken)
        except Exception as error:  # noqa: BLE001  a client must not get a traceback
            for run in taken:
                run.failure = run.failure or as_request_error(error, "denoising")
        responses = [self._respond(*each) for each in zip(requests, texts, runs, strict=True)]
        return None if self._decoupled else responses

    def _end_undecodable(self, runs: Iterable[FrontRun]) -> None:
        """Ends those whose decoder has died: Triton binds an ensemble's request to the models that there are then."""
        decoders = ups(self._vae_decoder)
        for run in runs:
            run.decoders = run.decoders or decoders
            if not decoders or run.decoders != decoders:
                run.failure = run.failure or down(self._vae_decoder)

    def _take_up(self, request: Any, text: bytes) -> FrontRun | RequestError:
        try:
            names = ("ENCODING", "LATENT_KEYS", "TICKETS")
            run = self._front.take_up(text, *(input_text(request, name) for name in names))
        except Exception as error:  # noqa: BLE001  whatever one request brings must not end the others
            failure = as_request_error(error, "denoising")
            with suppress(InvalidRequestError):  # a client called this model by itself
                self._ends.failed(Ending.of(CompletedRequest.from_json(text.decode("utf-8", "replace"))), failure)
            return failure
        run.in_hand = request
        if not self._decoupled and run.request.previews is not None:
            run.failure = InvalidRequestError(
                f"PREVIEWS is {run.request.previews.every}; allowed: 0, or the model {self._pipeline}_stream"
            )
        if not run.starts:
            self._ends.take(run.request.run_id)
        return run

    def _respond(self, request: Any, text: bytes, run: FrontRun | RequestError) -> Any:
        """The request's response, or None; what has not ended is rescheduled."""
        if isinstance(run, RequestError):
            return self._send(request, self._stopped(run), ended=True)
        if self._decoupled:
            for step in range(run.told + 1, min(run.state.step, run.state.of - 1) + 1):
                self._send(request, self._progress(run, step), ended=False)
                run.told = step
        if run.failure is None and run.latents is None:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            return None
        failure = cancelled(run) if self._front.end(text) else run.failure
        with run.held:
            if failure is None:
                return self._send(request, self._hand_over(run), ended=True)
        self._ends.failed(ending_of(run), failure)
        return self._send(request, self._stopped(failure), ended=True)

    def _hand_over(self, run: FrontRun) -> Any:
        """The response with final latents; what is put back around the mask stays for `vae_decoder`."""
        info = info_of(run)
        if info.get("forecast_ms"):
            self._forecasts.observe(info["forecast_came_to_ms"] / info["forecast_ms"], pipeline=self._pipeline)
        self._ends.hand_on(run.request.run_id)
        composes = run.request.edit is not None and run.request.edit.composite
        if composes:
            self._handed_over.keep(run.request.run_id, run.held.pop_all())
        asked = run.request if composes or run.request.output is not None else None
        return _response(run.latents, Handover(True, asked, time.monotonic(), ending_of(run)), info)

    def _send(self, request: Any, response: Any, ended: bool) -> Any:
        if self._decoupled:
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if ended else 0
            request.get_response_sender().send(response, flags=flags)
        return response

    def _progress(self, run: FrontRun, step: int) -> Any:
        info = {"step": step, "of": run.state.of}
        if run.preview is not None and run.preview[0] == step:
            return _response(run.preview[1], Handover(request=run.request), info)
        return self._without_latents(Handover(), info)

    def _without_latents(self, handover: Handover, info: dict[str, Any]) -> Any:
        return _response(np.zeros((1, self._channels, 1, 1), np.float32), handover, info)

    def _stopped(self, error: RequestError) -> Any:
        """The end without a picture: an error; in a stream a response like the others, which `vae_decoder` makes one.

        An error in a stream would overtake progress that is still in `vae_decoder`; Triton 2.51 then never ends the
        ensemble's request.
        """
        if not self._decoupled:
            return error_response(error)
        return self._without_latents(Handover(error=Report(**to_report(error))), {})


def _response(latents: np.ndarray | None, handover: Handover, info: dict[str, Any]) -> Any:
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("LATENTS", latents),
            text_tensor("HANDOVER", handover.to_json()),
            text_tensor("INFO", json.dumps(info)),
        ]
    )
