"""The models `denoiser` and `denoiser_stream`: each `execute` is one denoising step of the whole running batch.

Both are iterative sequences: Triton hands a request over again until it is released, and requests that arrived in the
meantime with it. So requests join and leave between steps. `execute` is synchronous on purpose: in a decoupled model an
asynchronous one returns before the reschedule flag is set, and the sequence hangs.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from .backend import input_tensor, output_tensor, prepare_torch
from .cancellation import RunningRequests
from .denoising import Denoising, LatentGeometry, unet_calls
from .info import final_info
from .placement import place
from .request import GenerationRequest, InvalidRequestError
from .schedulers import SCHEDULERS
from .settings import ModelSettings, error_response, input_text, text_tensor
from .shard_pool import ShardError, ShardPool

if TYPE_CHECKING:
    from collections.abc import Mapping

ABANDONED_AFTER_S = 900.0
"""A request that the server has not handed over for this long is forgotten (its sequence ended without us)."""


class RequestStoppedError(Exception):
    """A running request that ends without a picture: the message for its client and the name of its error's code."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class TritonPythonModel:
    """Owns latents and sampler of every running request, and decides which shard evaluates what."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Reads the checkpoint's scheduler and latent shapes from the parameters; the shards hold the weights."""
        settings = ModelSettings.from_triton(args)
        prepare_torch(settings)
        self._decoupled = pb_utils.using_decoupled_model_transaction_policy(dict(settings.config))
        self._scheduler_config = json.loads(settings.parameters["scheduler"])
        self._geometry = LatentGeometry(**json.loads(settings.parameters["latents"]))
        self._has_pooled = any(tensor["name"] == "POOLED_PROMPT_EMBEDS" for tensor in settings.config["input"])
        self._shards = ShardPool(settings.parameters["unet_shards"].split(","))
        self._cancellable = RunningRequests(settings.name)
        self._running: dict[int, Denoising] = {}
        self._warm_up(settings.config["input"])

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """One step for every request handed over; a response for those that are done (decoupled: for all)."""
        outcomes: dict[int, Denoising | Exception] = {}
        for request in requests:
            identity = request.correlation_id()
            try:
                denoising = self._running.get(identity) or self._join(identity, request)
                _raise_if_stopped(denoising, self._cancellable)
                outcomes[identity] = denoising
            except (RequestStoppedError, InvalidRequestError) as error:
                outcomes[identity] = error
        self._step([denoising for denoising in outcomes.values() if isinstance(denoising, Denoising)], outcomes)
        responses = [self._respond(request, outcomes[request.correlation_id()]) for request in requests]
        return None if self._decoupled else responses

    def _warm_up(self, inputs: list[dict[str, Any]]) -> None:
        """One sampler step of every scheduler: what they import and build lazily must not cost the first request."""
        shapes = {tensor["name"]: [int(size) for size in tensor["dims"]] for tensor in inputs}
        embeddings = torch.zeros(shapes["PROMPT_EMBEDS"])
        pooled = torch.zeros(shapes["POOLED_PROMPT_EMBEDS"]) if self._has_pooled else None
        side = 8 * self._geometry.scale_factor
        for scheduler in (None, *SCHEDULERS):
            request = GenerationRequest("", None, 0, 2, 2.0, side, side, scheduler)
            denoising = Denoising(request, self._scheduler_config, self._geometry, embeddings, pooled)
            (call,) = unet_calls([(denoising, half) for half in denoising.halves], {denoising: denoising.model_input()})
            predictions = call.tensors["LATENTS"].split(1)
            denoising.advance(dict(zip(denoising.halves, predictions, strict=True)))

    def _join(self, identity: int, request: Any) -> Denoising:
        self._forget_abandoned()
        parsed = GenerationRequest.from_json(input_text(request, "REQUEST"))
        pooled = input_tensor(request, "POOLED_PROMPT_EMBEDS")[0].clone() if self._has_pooled else None
        embeddings = input_tensor(request, "PROMPT_EMBEDS")[0].clone()
        encoding = json.loads(input_text(request, "ENCODING"))
        denoising = Denoising(parsed, self._scheduler_config, self._geometry, embeddings, pooled, encoding)
        if parsed.request_id is not None:
            self._cancellable.enter(parsed.request_id)
        self._running[identity] = denoising
        return denoising

    def _step(self, batch: list[Denoising], outcomes: dict[int, Denoising | Exception]) -> None:
        """Advances every request by one step; requests whose shard is down get their error as outcome."""
        if not batch:
            return
        inputs = {denoising: denoising.model_input() for denoising in batch}
        placed = [
            (shard, call)
            for shard, rows in enumerate(place(batch, len(self._shards.names)))
            for call in unet_calls(rows, inputs)
        ]
        predictions: dict[Denoising, dict[int, torch.Tensor]] = {denoising: {} for denoising in batch}
        failures: dict[Denoising, Exception] = {}
        for (shard, call), result in zip(placed, self._shards.evaluate(placed), strict=True):
            for row, (denoising, half) in enumerate(call.rows):
                denoising.report.shards.add(self._shards.names[shard])
                if isinstance(result, ShardError):
                    failures[denoising] = result
                else:
                    predictions[denoising][half] = result[row : row + 1]
        for denoising in batch:
            if denoising in failures:
                continue
            denoising.report.largest_batch = max(denoising.report.largest_batch, len(batch))
            try:
                denoising.advance(predictions[denoising])
            except Exception as error:  # noqa: BLE001  a sampler's failure ends its own request only
                pb_utils.Logger.log_error(f"sampler step failed: {error!r}")
                failures[denoising] = RequestStoppedError(f"the sampler failed: {error}", "INTERNAL")
        for identity, outcome in outcomes.items():
            if isinstance(outcome, Denoising) and outcome in failures:
                outcomes[identity] = failures[outcome]

    def _respond(self, request: Any, outcome: Denoising | Exception) -> Any:
        """The request's response, or None; what is not done is rescheduled."""
        if isinstance(outcome, Exception):
            ended = True
            response = self._stopped(outcome) if self._decoupled else error_response(str(outcome), _error_code(outcome))
        else:
            outcome.touched = time.monotonic()
            ended = outcome.done
            response = self._progress(outcome) if ended or self._decoupled else None
        if ended:
            self._leave(request.correlation_id())
        else:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
        if self._decoupled:
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if ended else 0
            request.get_response_sender().send(response, flags=flags)
        return response

    def _progress(self, denoising: Denoising) -> Any:
        if denoising.done:
            return _latents_response(denoising.latents, False, final_info(denoising, self._scheduler_config))
        return _latents_response(denoising.latents, True, {"step": denoising.step, "of": denoising.steps})

    def _stopped(self, error: Exception) -> Any:
        """The end of a stream without a picture, as a response like the others: `vae_decoder` makes it the error.

        An error sent from here overtakes progress that is still in `vae_decoder`; Triton 2.51 then never ends the
        ensemble's request.
        """
        info = {"error": str(error), "code": _error_code(error)}
        return _latents_response(torch.zeros(1, self._geometry.channels, 1, 1), True, info)

    def _leave(self, identity: int) -> None:
        denoising = self._running.pop(identity, None)
        if denoising is not None and denoising.request.request_id is not None:
            self._cancellable.leave(denoising.request.request_id)

    def _forget_abandoned(self) -> None:
        now = time.monotonic()
        for identity in [key for key, run in self._running.items() if now - run.touched > ABANDONED_AFTER_S]:
            self._leave(identity)


def _raise_if_stopped(denoising: Denoising, cancellable: RunningRequests) -> None:
    request, place_in_run = denoising.request, f"after step {denoising.step} of {denoising.steps}"
    if request.request_id is not None and cancellable.is_cancelled(request.request_id):
        raise RequestStoppedError(f'REQUEST_ID "{request.request_id}" was cancelled {place_in_run}', "CANCELLED")
    if request.deadline is not None and time.time() > request.deadline:
        raise RequestStoppedError(f"TIMEOUT_MS passed {place_in_run}", "UNAVAILABLE")


def _latents_response(latents: torch.Tensor, preview: bool, info: dict[str, Any]) -> Any:
    return pb_utils.InferenceResponse(
        [
            output_tensor("LATENTS", latents),
            pb_utils.Tensor("PREVIEW", np.array([[preview]])),
            text_tensor("INFO", json.dumps(info)),
        ]
    )


def _error_code(error: Exception) -> str:
    if isinstance(error, RequestStoppedError):
        return error.code
    return "INVALID_ARG" if isinstance(error, InvalidRequestError) else "UNAVAILABLE"
