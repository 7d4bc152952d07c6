"""The model `preprocess`: a client's inputs, most of them optional, become one complete request.

Its LoRAs begin to load here, before its prompt is encoded.
"""

from __future__ import annotations

import json
import time
from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from .backend import metrics
from .backend.model import Model
from .backend.model_calls import down, load_loras, traced
from .backend.request_ends import Ending, RequestEnds
from .backend.responses import answer_each
from .backend.settings import ModelSettings, input_arrays, parameter_names, text_tensor
from .common.draining import is_draining
from .common.errors import DrainingError, ModelDownError, NotBegunError, RequestError, UnknownLoraError
from .common.pulse import DOOR, is_up
from .engine.admission import Admission
from .engine.shards import Shards
from .lora.loading.catalogue import Catalogue
from .lora.loading.tickets import raise_failure
from .request.cancellation import RequestRegistry
from .request.completed import Arrival
from .request.controlnets import KnownControlNet
from .request.parameters import refuse_unread
from .request.parsing import parse_request
from .request.rules import RequestRules
from .shared_memory.pictures import Pictures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class TritonPythonModel(Model):
    """Parses, checks and completes requests; what follows can then batch, since every request looks alike."""

    doing = DOOR

    def load(self, args: Mapping[str, str]) -> None:
        """Reads the rules from the model's parameters."""
        settings = ModelSettings.from_triton(args)
        types: dict[str, Callable[[str], Any]] = {
            "int": int,
            "float": float,
            "str": str,
            "bool": lambda text: text == str(True),
            "tuple[str, ...]": lambda text: tuple(json.loads(text)),
        }
        self._rules = RequestRules(
            **{
                field.name: types[str(field.type)](settings.parameters[field.name])
                for field in fields(RequestRules)
                if field.name in settings.parameters or field.default is MISSING
            }
        )
        shards = Shards(settings.parameters["unet_shards"].split(","))
        self._pipeline = settings.parameters["pipeline"]
        offered = metrics.Counter(
            "swiftdiffusion_offered_seconds_total", "Time for which requests alone would keep a pipeline busy"
        )
        offered.add(0.0, pipeline=self._pipeline)
        self._admission = Admission(
            shards, self._rules, self._pipeline, offered=lambda seconds: offered.add(seconds, pipeline=self._pipeline)
        )
        self._refused = metrics.Counter(
            "swiftdiffusion_requests_refused_total", "Requests that ended before anything was computed, by reason"
        )
        for reason in ("late", "full", "draining"):
            self._refused.add(0.0, pipeline=self._pipeline, reason=reason)
        self._ends = RequestEnds()
        self._ends.expect(self._pipeline)
        self._ends.look_for_lost()
        self._catalogue = Catalogue(settings.path("loras"))
        self._refusals = metrics.Counter(*metrics.LORA_REFUSALS)
        self._registry = RequestRegistry()
        self._lora_store = settings.parameters["lora_store"]
        self._needed = [settings.parameters[name] for name in ("text_encoder", "vae_encoder", "vae_decoder")]
        known = json.loads(settings.parameters["controlnets"])
        self._controlnets = {name: KnownControlNet(**values) for name, values in known.items()}
        self._pictures = Pictures()
        self._input_names = [tensor["name"] for tensor in settings.config["input"]]

    def respond(self, requests: list[Any]) -> list[Any]:
        """REQUEST and TICKETS for each good request, an error for each other."""
        return answer_each(requests, self._complete, "reading the request", self._refuse)

    def _complete(self, request: Any) -> Any:
        try:
            return self._accepted(request)
        except ModelDownError as error:  # clients may ask again for as long as they like
            raise NotBegunError(f"not begun: {error}") from None

    def _accepted(self, request: Any) -> Any:
        came = time.monotonic()
        self._ending = Ending("-", None, self._pipeline, came)
        if is_draining():
            raise DrainingError("the server is about to stop and takes no new requests; retry elsewhere")
        given = {name: array[0] for name, array in input_arrays(request, self._input_names).items()}
        refuse_unread(parameter_names(request), self._input_names, self._rules.ignored_parameters)
        try:
            parsed = parse_request(given, self._rules, self._catalogue, self._controlnets, self._pictures.put)
        except UnknownLoraError:
            self._refusals.add(reason="unknown")
            raise
        parsed = replace(parsed, arrival=Arrival(self._pipeline, came))
        self._ending = Ending.of(parsed) or self._ending
        if missing := [model for model in self._needed if not is_up(model)]:
            raise down(*missing)
        if parsed.request_id is not None:
            # Before anything that takes time: it may be cancelled from now on.
            self._registry.accept(parsed.request_id, parsed.run_id)
        try:
            with traced(request):
                parsed = self._admission.admit(parsed)
                tickets = load_loras(self._lora_store, parsed) if parsed.loras else "[]"
            raise_failure(tickets)
            parsed = replace(parsed, arrival=Arrival(self._pipeline, came, time.monotonic() - came))
            self._ends.accept(Ending.of(parsed) or self._ending)
        except Exception:
            self._admission.give_back(parsed)
            if parsed.request_id is not None:
                self._registry.leave(parsed.request_id, parsed.run_id)
            raise
        return pb_utils.InferenceResponse([text_tensor("REQUEST", parsed.to_json()), text_tensor("TICKETS", tickets)])

    def _refuse(self, _request: Any, error: RequestError) -> None:
        self._refused.add(pipeline=self._pipeline, reason=error.reason)
        self._ends.refused(self._ending, error)
