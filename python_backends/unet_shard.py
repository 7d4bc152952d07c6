"""The models `unet_shard0`, `unet_shard1` …: noise predictions of whatever rows the denoisers send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton_python_backend_utils as pb_utils

from .backend import ComputeSettings, input_tensor, output_tensor
from .settings import ModelSettings
from .unet import UNet

if TYPE_CHECKING:
    from collections.abc import Mapping


class TritonPythonModel:
    """One UNet on one device. Shards are models of their own, so that a denoiser chooses among them by name."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads the UNet, which warms itself up."""
        settings = ModelSettings.from_triton(args)
        self._input_names = [tensor["name"] for tensor in settings.config["input"]]
        compute = ComputeSettings.from_settings(settings)
        self._unet = UNet(compute.checkpoint, compute.device, compute.dtype)

    def execute(self, requests: list[Any]) -> list[Any]:
        """NOISE_PRED for every request; the requests that Triton batched are evaluated in one call."""
        batch = [{name: input_tensor(request, name) for name in self._input_names} for request in requests]
        if len(batch) == 1:
            return [_response(self._unet(batch[0]))]
        joined = {name: torch.cat([tensors[name] for tensors in batch]) for name in self._input_names}
        rows = [len(tensors["LATENTS"]) for tensors in batch]
        return [_response(prediction) for prediction in self._unet(joined).split(rows)]


def _response(prediction: torch.Tensor) -> Any:
    return pb_utils.InferenceResponse([output_tensor("NOISE_PRED", prediction)])
