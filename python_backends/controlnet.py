"""The models `controlnet_NAME`: residuals for whatever rows the UNet shards send. One backend for all."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from .backend.compute import ComputeSettings
from .backend.memory import keep_freed_memory
from .backend.metrics import BusyTime
from .backend.model import Model
from .backend.responses import answer_all
from .backend.settings import ModelSettings, input_texts, text_tensor
from .backend.tensors import joined_inputs, output_tensor
from .common.errors import row_reports
from .controlnets.network import ControlNet
from .request.completed import ControlNetUse, use_from_json
from .shared_memory.pictures import Pictures

if TYPE_CHECKING:
    from collections.abc import Mapping


class TritonPythonModel(Model):
    """One ControlNet on one device; Triton batches the calls of all shards, requests and pipelines."""

    computes = True

    def load(self, args: Mapping[str, str]) -> None:
        """Loads the network, which warms itself up."""
        settings = ModelSettings.from_triton(args)
        self._input_names = [tensor["name"] for tensor in settings.config["input"] if tensor["name"] != "CONTROL"]
        compute = ComputeSettings.from_settings(settings)
        self._busy = BusyTime(settings.name, settings.instance)
        self._network = ControlNet(
            settings.required_path("controlnet"),
            compute.checkpoint,
            compute.device,
            compute.dtype,
            Pictures().get,
            compute.runtime,
            engine=settings.name,
            most_rows=int(settings.config["max_batch_size"]),
        )
        keep_freed_memory()

    def respond(self, requests: list[Any]) -> list[Any]:
        """RESIDUALS and FAILURES for every request; those that Triton batched are evaluated in one call."""
        return answer_all(requests, self._evaluate, "evaluation")

    def _evaluate(self, requests: list[Any]) -> list[Any]:
        controls = [_controls(request) for request in requests]
        joined, rows = joined_inputs(requests, self._input_names)
        with self._busy.counted():
            residuals, failed = self._network(joined, [use for uses in controls for use in uses])
        failures = row_reports(failed, len(residuals))
        return [
            pb_utils.InferenceResponse(
                [output_tensor("RESIDUALS", part), text_tensor("FAILURES", *failures[end - len(part) : end])]
            )
            for part, end in zip(residuals.split(rows), accumulate(rows), strict=True)
        ]


def _controls(request: Any) -> list[ControlNetUse]:
    """Raises InvalidRequestError for what no shard writes."""
    return [use_from_json(text) for text in input_texts(request, "CONTROL")]
