"""The models `denoiser` and `denoiser_stream`: each `execute` is one denoising step of the whole running batch.

Both are iterative sequences: Triton hands a request over again until it is released, and requests that arrived in the
meantime with it. So requests join and leave between steps. `execute` is synchronous on purpose: in a decoupled model an
asynchronous one returns before the reschedule flag is set, and the sequence hangs.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from .backend.memory import keep_freed_memory
from .backend.metrics import Histogram
from .backend.process import prepare_torch
from .backend.responses import as_request_error, error_response
from .backend.settings import ModelSettings, input_text, text_tensor
from .backend.tensors import input_tensor, output_tensor
from .common.errors import RequestCancelledError, RequestError, RequestTimeoutError, to_report
from .controlnets.images import ControlImages
from .engine.adapter_services import AdapterServices
from .engine.info import final_info
from .engine.placement import place
from .engine.run import Denoising, LatentGeometry
from .engine.shard_pool import ShardPool
from .engine.unet_calls import unet_calls
from .request.cancellation import RequestRegistry
from .request.completed import CompletedRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32)
WAITING_POLL_S = 0.003
"""Pause between looks for LoRAs where every request of the batch waits for one."""
ABANDONED_AFTER_S = 900.0
"""A request that the server has not handed over for this long is forgotten (its sequence ended without us)."""


class TritonPythonModel:
    """Owns latents and sampler of every running request, and decides which shard evaluates what."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Reads the checkpoint's scheduler and latent shapes from the parameters; the shards hold the weights."""
        settings = ModelSettings.from_triton(args)
        prepare_torch(settings)
        keep_freed_memory()
        self._decoupled = pb_utils.using_decoupled_model_transaction_policy(dict(settings.config))
        self._scheduler_config = json.loads(settings.parameters["scheduler"])
        self._geometry = LatentGeometry(**json.loads(settings.parameters["latents"]))
        self._has_pooled = any(tensor["name"] == "POOLED_PROMPT_EMBEDS" for tensor in settings.config["input"])
        self._shards = ShardPool(settings.parameters["unet_shards"].split(","))
        self._registry = RequestRegistry()
        self._images = ControlImages()
        self._batch_sizes = Histogram(
            "swiftdiffusion_denoiser_batch_size", "Requests in a denoising step", BATCH_BUCKETS
        )
        self._adapters = AdapterServices(
            settings.parameters["text_encoder"],
            settings.parameters["lora_store"],
            self._has_pooled,
            settings.parameters["uploads_ahead"] == "1",
            float(settings.parameters.get("lora_timeout_s", 300)),
        )
        self._places = int(settings.parameters["places"])
        self._handed_over: set[str] = set()
        self._gathered = False
        self._running: dict[str, Denoising] = {}
        self._warm_up(settings.config["input"], json.loads(settings.parameters["schedulers"]))

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """One step for every request handed over; a response for those that are done (decoupled: for all)."""
        runs = [self._take_up(request) for request in requests]
        able = [run for run in runs if isinstance(run, Denoising) and not run.waiting]
        gathers = self._gathers(runs)
        going = [] if gathers else sorted(able, key=lambda run: run.report.started)[: self._places]
        try:
            self._step(going)
        except Exception as error:  # noqa: BLE001  a client must not get a traceback
            for run in going:
                run.failure = run.failure or as_request_error(error, "denoising")
        if not able and any(isinstance(run, Denoising) for run in runs):
            time.sleep(WAITING_POLL_S)
        stepped = set(map(id, going))
        responses = [
            self._respond(request, run, id(run) in stepped) for request, run in zip(requests, runs, strict=True)
        ]
        return None if self._decoupled else responses

    def _warm_up(self, inputs: list[dict[str, Any]], schedulers: list[str]) -> None:
        """One sampler step of every scheduler: what they import and build lazily must not cost the first request."""
        shapes = {tensor["name"]: [abs(int(size)) for size in tensor["dims"]] for tensor in inputs}  # -1 is any
        embeddings = torch.zeros(shapes["PROMPT_EMBEDS"])
        pooled = torch.zeros(shapes["POOLED_PROMPT_EMBEDS"]) if self._has_pooled else None
        side = 8 * self._geometry.scale_factor
        for scheduler in (None, *schedulers):
            request = CompletedRequest("warm-up", "", None, 0, 2, 2.0, side, side, scheduler)
            denoising = Denoising(request, self._scheduler_config, self._geometry, embeddings, pooled)
            (call,) = unet_calls([(denoising, half) for half in denoising.halves], {denoising: denoising.model_input()})
            predictions = call.tensors["LATENTS"].split(1)
            denoising.advance(dict(zip(denoising.halves, predictions, strict=True)))

    def _take_up(self, request: Any) -> Denoising | RequestError:
        """The run that a request belongs to, started if it is new; the error of one that is to end before its step."""
        parsed = None
        try:
            parsed = CompletedRequest.from_json(input_text(request, "REQUEST"))
            denoising = self._running.get(parsed.run_id) or self._join(parsed, request)
            self._raise_if_stopped(denoising)
            denoising.put_on_loras()
        except Exception as error:  # noqa: BLE001  whatever one request brings must not end the others
            if parsed is not None:
                self._leave(parsed)
            return as_request_error(error, "denoising")
        return denoising

    def _join(self, parsed: CompletedRequest, request: Any) -> Denoising:
        self._forget_abandoned()
        embeddings = input_tensor(request, "PROMPT_EMBEDS")[0].clone()
        pooled = input_tensor(request, "POOLED_PROMPT_EMBEDS")[0].clone() if self._has_pooled else None
        encoding = json.loads(input_text(request, "ENCODING"))
        with ExitStack() as undone:
            loras = self._adapters.take_up(parsed, input_text(request, "TICKETS"))
            undone.callback(loras.close)
            images = [undone.enter_context(self._images.lease(key)) for use in parsed.controlnets for key in use.images]
            denoising = Denoising(
                parsed, self._scheduler_config, self._geometry, embeddings, pooled, encoding, loras, images
            )
            if parsed.request_id is not None:
                self._registry.enter(parsed.request_id, parsed.run_id)
            undone.pop_all()
        self._running[parsed.run_id] = denoising
        return denoising

    def _raise_if_stopped(self, denoising: Denoising) -> None:
        request = denoising.request
        if request.request_id is not None and self._registry.is_cancelled(request.request_id, request.run_id):
            raise _cancelled(denoising)
        if request.deadline is not None and time.time() > request.deadline:
            raise RequestTimeoutError(f"TIMEOUT_MS passed {_place_in_run(denoising)}")

    def _gathers(self, runs: list[Denoising | RequestError]) -> bool:
        """Whether to take no step yet: requests come back from the last one singly, and those missing are waited for.

        Only once per step, so that one that Triton dropped holds nobody up.
        """
        here = {run.request.run_id for run in runs if isinstance(run, Denoising)}
        missing = {run_id for run_id in self._handed_over - here if run_id in self._running}
        gathers = bool(missing) and bool(here) and not self._gathered
        self._gathered = gathers
        self._handed_over = here | missing if gathers else here
        return gathers

    def _step(self, batch: list[Denoising]) -> None:
        """Advances every request by one step; one whose shard or sampler fails gets its `failure`."""
        if not batch:
            return
        self._batch_sizes.observe(len(batch))
        inputs = self._model_inputs(batch)
        placed = [
            (shard, call)
            for shard, rows in enumerate(place(list(inputs), self._shards.resident))
            for call in unet_calls(rows, inputs, self._shards.resident[shard])
        ]
        predictions: dict[Denoising, dict[int, torch.Tensor]] = {denoising: {} for denoising in inputs}
        for (shard, call), result in zip(placed, self._shards.evaluate(placed), strict=True):
            for row, (denoising, half) in enumerate(call.rows):
                denoising.report.shards.add(self._shards.names[shard])
                if isinstance(result, RequestError):
                    denoising.failure = result
                elif row in result.failures:
                    denoising.failure = result.failures[row]
                else:
                    predictions[denoising][half] = result.prediction[row : row + 1]
                    denoising.loras.note_patch(denoising.step, result.patch_ms)
                    denoising.note_stale(call.controls[row], result.stale[row])
        for denoising in batch:
            if denoising.failure is not None:
                continue
            denoising.report.largest_batch = max(denoising.report.largest_batch, len(batch))
            try:
                denoising.advance(predictions[denoising])
            except Exception as error:  # noqa: BLE001  a sampler's failure ends its own request only
                denoising.failure = as_request_error(error, "denoising")

    def _model_inputs(self, batch: list[Denoising]) -> dict[Denoising, tuple[torch.Tensor, torch.Tensor]]:
        """What each gives the UNet; one whose sampler fails gets its `failure`."""
        inputs = {}
        for denoising in batch:
            try:
                inputs[denoising] = denoising.model_input()
            except Exception as error:  # noqa: BLE001  a sampler's failure ends its own request only
                denoising.failure = as_request_error(error, "denoising")
        return inputs

    def _respond(self, request: Any, run: Denoising | RequestError, stepped: bool) -> Any:
        """The request's response, or None; what is not done is rescheduled."""
        if isinstance(run, RequestError):
            return self._send(request, self._stopped(run), ended=True)
        run.touched = time.monotonic()
        if not stepped:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            return None
        if run.failure is not None or run.done:
            failure = _cancelled(run) if self._leave(run.request) else run.failure
            response = self._progress(run) if failure is None else self._stopped(failure)
            return self._send(request, response, ended=True)
        request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
        return self._send(request, self._progress(run), ended=False) if self._decoupled else None

    def _send(self, request: Any, response: Any, ended: bool) -> Any:
        if self._decoupled:
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if ended else 0
            request.get_response_sender().send(response, flags=flags)
        return response

    def _progress(self, denoising: Denoising) -> Any:
        if denoising.done:
            return _latents_response(denoising.latents, False, final_info(denoising, self._scheduler_config))
        return _latents_response(denoising.latents, True, {"step": denoising.step, "of": denoising.steps})

    def _stopped(self, error: RequestError) -> Any:
        """The end without a picture: an error; in a stream a response like the others, which `vae_decoder` makes one.

        An error in a stream would overtake progress that is still in `vae_decoder`; Triton 2.51 then never ends the
        ensemble's request.
        """
        if not self._decoupled:
            return error_response(error)
        return _latents_response(torch.zeros(1, self._geometry.channels, 1, 1), True, {"error": to_report(error)})

    def _leave(self, request: CompletedRequest) -> bool:
        """Forgets a request, whether it had joined or not; whether it was cancelled, in its last step even."""
        denoising = self._running.pop(request.run_id, None)
        if denoising is not None:
            denoising.close()
            self._adapters.count(denoising.loras)
        return request.request_id is not None and self._registry.leave(request.request_id, request.run_id)

    def _forget_abandoned(self) -> None:
        now = time.monotonic()
        for run in [run for run in self._running.values() if now - run.touched > ABANDONED_AFTER_S]:
            self._leave(run.request)


def _latents_response(latents: torch.Tensor, preview: bool, info: dict[str, Any]) -> Any:
    return pb_utils.InferenceResponse(
        [
            output_tensor("LATENTS", latents),
            pb_utils.Tensor("PREVIEW", np.array([[preview]])),
            text_tensor("INFO", json.dumps(info)),
        ]
    )


def _cancelled(denoising: Denoising) -> RequestCancelledError:
    request_id = denoising.request.request_id
    return RequestCancelledError(f'REQUEST_ID "{request_id}" was cancelled {_place_in_run(denoising)}')


def _place_in_run(denoising: Denoising) -> str:
    return f"after step {denoising.step} of {denoising.steps}"
