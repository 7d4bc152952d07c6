"""The model `preprocess`: a client's inputs, most of them optional, become one complete request.

Its LoRAs begin to load here, before its prompt is encoded.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from .backend import metrics
from .backend.model import Model
from .backend.model_calls import down, load_loras
from .backend.responses import answer_each
from .backend.settings import ModelSettings, input_arrays, text_tensor
from .common.draining import is_draining
from .common.errors import DrainingError, UnknownLoraError
from .common.pulse import DOOR, is_up
from .controlnets.images import ControlImages
from .engine.admission import Admission
from .engine.shards import Shards
from .lora.loading.catalogue import Catalogue
from .lora.loading.tickets import raise_failure
from .request.cancellation import RequestRegistry
from .request.controlnets import KnownControlNet
from .request.parameters import refuse_unread
from .request.parsing import parse_request
from .request.rules import RequestRules

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
        self._admission = Admission(shards, self._rules, settings.parameters["pipeline"])
        self._catalogue = Catalogue(settings.path("loras"))
        self._refusals = metrics.Counter(*metrics.LORA_REFUSALS)
        self._registry = RequestRegistry()
        self._lora_store = settings.parameters["lora_store"]
        self._needed = [settings.parameters[name] for name in ("text_encoder", "vae_decoder")]
        known = json.loads(settings.parameters["controlnets"])
        self._controlnets = {name: KnownControlNet(**values) for name, values in known.items()}
        self._images = ControlImages()
        self._input_names = [tensor["name"] for tensor in settings.config["input"]]

    def respond(self, requests: list[Any]) -> list[Any]:
        """REQUEST and TICKETS for each good request, an error for each other."""
        return answer_each(requests, self._complete, "reading the request")

    def _complete(self, request: Any) -> Any:
        if is_draining():
            raise DrainingError("the server is about to stop and takes no new requests; retry elsewhere")
        given = {name: array[0] for name, array in input_arrays(request, self._input_names).items()}
        refuse_unread(json.loads(request.parameters()), self._input_names, self._rules.ignored_parameters)
        try:
            parsed = parse_request(given, self._rules, self._catalogue, self._controlnets, self._images.put)
        except UnknownLoraError:
            self._refusals.add(reason="unknown")
            raise
        if missing := [model for model in self._needed if not is_up(model)]:
            raise down(*missing)
        if parsed.request_id is not None:
            # Before anything that takes time: it may be cancelled from now on.
            self._registry.accept(parsed.request_id, parsed.run_id)
        try:
            parsed = self._admission.admit(parsed)
            tickets = load_loras(self._lora_store, parsed) if parsed.loras else "[]"
            raise_failure(tickets)
        except Exception:
            self._admission.give_back(parsed)
            if parsed.request_id is not None:
                self._registry.leave(parsed.request_id, parsed.run_id)
            raise
        return pb_utils.InferenceResponse([text_tensor("REQUEST", parsed.to_json()), text_tensor("TICKETS", tickets)])
