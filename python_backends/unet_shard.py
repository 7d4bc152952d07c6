"""The models `unet_shard0`, `unet_shard1` …: noise predictions of whatever rows the denoisers send."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import triton_python_backend_utils as pb_utils

from .backend.compute import ComputeSettings
from .backend.memory import keep_freed_memory
from .backend.metrics import TRANSFERRED, Counter, Histogram
from .backend.reloadable import Reloadable
from .backend.responses import as_request_error, error_response
from .backend.settings import ModelSettings, input_text, input_texts, text_tensor
from .backend.tensors import joined_inputs, output_tensor
from .common.errors import row_reports
from .controlnets.calls import ControlNetCalls, Endpoint
from .controlnets.images import ControlImages
from .controlnets.local import LocalControlNet
from .lora.files.lora_set import LoraSet, set_from_json
from .lora.patching.resident import ResidentLoras
from .networks.unet import UNet
from .networks.unet_halves import residual_size
from .request.completed import ControlNetUse, uses_from_json
from .shared_memory.host_directory import host_cache_directory

if TYPE_CHECKING:
    from collections.abc import Mapping


class TritonPythonModel(Reloadable):
    """One UNet on one device. Shards are models of their own, so that a denoiser chooses among them by name."""

    def load(self, args: Mapping[str, str]) -> None:
        """Loads the UNet, which warms itself up."""
        settings = ModelSettings.from_triton(args)
        names = [tensor["name"] for tensor in settings.config["input"]]
        self._input_names = [name for name in names if name not in ("LORA_SET", "LORAS_AHEAD", "CONTROLS")]
        self._controlnets = _controlnet_calls(settings)
        self._bytes = Counter(*TRANSFERRED)
        compute = ComputeSettings.from_settings(settings)
        self._unet = UNet(compute.checkpoint, compute.device, compute.dtype, compute.runtime)
        keep_freed_memory()
        if settings.parameters["patches"] == "1":
            self._unet.patcher.warm_up()
        self._loras = ResidentLoras(self._unet.patcher, host_cache_directory())
        self._name = settings.name
        self._patch_seconds = Histogram(
            "swiftdiffusion_lora_patch_seconds", "Time to make another LoRA set resident, by shard"
        )

    def respond(self, requests: list[Any]) -> list[Any]:
        """NOISE_PRED for every request; those that Triton batched are evaluated in one call per LoRA set."""
        by_set: dict[LoraSet, list[int]] = {}
        controls: dict[int, list[tuple[ControlNetUse, ...]]] = {}
        ahead: set[str] = set()
        responses: list[Any] = [None] * len(requests)
        for number, request in enumerate(requests):
            try:
                controls[number] = [uses_from_json(text) for text in input_texts(request, "CONTROLS")]
                ahead |= {key for key, _ in set_from_json(input_text(request, "LORAS_AHEAD"))}
                by_set.setdefault(set_from_json(input_text(request, "LORA_SET")), []).append(number)
            except Exception as error:  # noqa: BLE001  what one request brings must not end the others
                responses[number] = error_response(as_request_error(error, "evaluation"))
        self._loras.upload(ahead)
        for loras in sorted(by_set, key=lambda loras: loras != self._loras.current):
            numbers = by_set[loras]
            try:
                rows = [uses for number in numbers for uses in controls[number]]
                answers = self._evaluate([requests[number] for number in numbers], loras, rows)
            except Exception as error:  # noqa: BLE001  one set's failure must not be that of the others
                answers = [error_response(as_request_error(error, "evaluation")) for _ in numbers]
            for number, answer in zip(numbers, answers, strict=True):
                responses[number] = answer
        return responses

    def _evaluate(self, requests: list[Any], loras: LoraSet, controls: list[tuple[ControlNetUse, ...]]) -> list[Any]:
        patch_ms = self._loras.ensure(loras)
        if patch_ms:
            self._patch_seconds.observe(patch_ms / 1000, shard=self._name)
        joined, rows = joined_inputs(requests, self._input_names)
        with self._controlnets.start(joined, controls) as pending:
            encoded = self._unet.encode(joined)
            residuals = pending.wait(residual_size(encoded.halfway))
        for name, nbytes in pending.sent.items():
            self._bytes.add(nbytes, model=f"controlnet_{name}", direction="to")
        for name, nbytes in residuals.nbytes.items():
            self._bytes.add(nbytes, model=f"controlnet_{name}", direction="from")
        prediction = self._unet.decode(encoded, residuals.total)
        failures = row_reports(residuals.failures, len(controls))
        ends = list(accumulate(rows))
        stale = [json.dumps(positions) for positions in pending.stale]
        return [
            _response(part, patch_ms, failures[end - len(part) : end], stale[end - len(part) : end])
            for part, end in zip(prediction.split(rows), ends, strict=True)
        ]


def _controlnet_calls(settings: ModelSettings) -> ControlNetCalls:
    """Calls to the ControlNets of this server, and to those that the parameter `controlnet_urls` says are elsewhere."""
    timeout_s = float(settings.parameters["controlnet_timeout_s"])
    urls = json.loads(settings.parameters["controlnet_urls"])

    def endpoint(name: str) -> Endpoint:
        if name not in urls:
            return LocalControlNet(name, timeout_s)
        from .controlnets.remote import RemoteControlNet  # needs gRPC, which a server without such ControlNets does not

        return RemoteControlNet(name, urls[name], timeout_s, ControlImages().get)

    return ControlNetCalls(endpoint, timeout_s, as_request_error)


def _response(prediction: torch.Tensor, patch_ms: float, failures: list[str], stale: list[str]) -> Any:
    return pb_utils.InferenceResponse(
        [
            output_tensor("NOISE_PRED", prediction),
            output_tensor("PATCH_MS", torch.full((len(prediction), 1), patch_ms)),
            text_tensor("FAILURES", *failures),
            text_tensor("STALE", *stale),
        ]
    )
