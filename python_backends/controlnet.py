"""The models `controlnet_NAME`: residuals for whatever rows the UNet shards send. One backend for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from .backend import ComputeSettings, joined_inputs, output_tensor
from .control_images import ControlImages
from .controlnet_network import Control, ControlNet
from .settings import ModelSettings, as_request_error, error_response, input_texts

if TYPE_CHECKING:
    from collections.abc import Mapping

OWN_INPUTS = ("IMAGE", "SCALE", "GUESS_MODE")


class TritonPythonModel:
    """One ControlNet on one device; Triton batches the calls of all shards, requests and pipelines."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads the network, which warms itself up."""
        settings = ModelSettings.from_triton(args)
        names = [tensor["name"] for tensor in settings.config["input"]]
        self._input_names = [name for name in names if name not in OWN_INPUTS]
        compute = ComputeSettings.from_settings(settings)
        directory = (settings.repository / settings.parameters["controlnet"]).resolve()
        self._network = ControlNet(directory, compute.checkpoint, compute.device, compute.dtype, ControlImages().get)

    def execute(self, requests: list[Any]) -> list[Any]:
        """RESIDUALS for every request; those that Triton batched are evaluated in one call."""
        try:
            return self._evaluate(requests)
        except Exception as error:  # noqa: BLE001  found out below whose it is
            if len(requests) == 1:
                return [error_response(as_request_error(error, "evaluation"))]
        return [response for request in requests for response in self.execute([request])]

    def _evaluate(self, requests: list[Any]) -> list[Any]:
        joined, rows = joined_inputs(requests, self._input_names)
        residuals = self._network(joined, [control for request in requests for control in _controls(request)])
        return [pb_utils.InferenceResponse([output_tensor("RESIDUALS", part)]) for part in residuals.split(rows)]


def _controls(request: Any) -> list[Control]:
    scales, guesses = (
        pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1) for name in ("SCALE", "GUESS_MODE")
    )
    return [
        Control(image, float(scale), bool(guess))
        for image, scale, guess in zip(input_texts(request, "IMAGE"), scales, guesses, strict=True)
    ]
