"""The model `pipelines`: what clients may ask a server for: sizes, samplers, LoRAs, ControlNets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from .backend.model import Model
from .backend.responses import answer_each
from .backend.settings import ModelSettings, input_arrays, text_tensor
from .common.errors import InvalidRequestError
from .common.pulse import DOOR
from .common.sentences import shown
from .lora.loading.catalogue import Catalogue
from .request.description import from_json
from .request.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

ALL = "*"


class TritonPythonModel(Model):
    """Reads the catalogues anew for every answer: operators add LoRAs while a server runs."""

    doing = DOOR

    def load(self, args: Mapping[str, str]) -> None:
        """Reads the pipelines from the parameters."""
        settings = ModelSettings.from_triton(args)
        self._pipelines = {
            name: (pipeline, Catalogue(settings.resolved(pipeline.loras)))
            for name, pipeline in from_json(settings.parameters["pipelines"]).items()
        }

    def respond(self, requests: list[Any]) -> list[Any]:
        """PIPELINES, as JSON by name, for each request."""
        return answer_each(requests, self._describe, "describing the pipelines")

    def _describe(self, request: Any) -> Any:
        asked = Fields(input_arrays(request, ["PIPELINE"])).text("PIPELINE", 128)
        if asked != ALL and asked not in self._pipelines:
            allowed = ", ".join((ALL, *self._pipelines))
            raise InvalidRequestError(f"PIPELINE is {shown(asked)}; allowed: {allowed}")
        described = {
            name: pipeline.description(catalogue.all_defaults())
            for name, (pipeline, catalogue) in self._pipelines.items()
            if asked in (ALL, name)
        }
        return pb_utils.InferenceResponse([text_tensor("PIPELINES", json.dumps(described))])
