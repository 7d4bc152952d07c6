"""The model `vae_decoder`: final latents become a picture; latents of a progress report become nothing."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import triton_python_backend_utils as pb_utils

from .backend.compute import ComputeSettings
from .backend.memory import keep_freed_memory
from .backend.model import Model
from .backend.responses import answer_all, error_response
from .backend.settings import ModelSettings, input_arrays, input_text, text_tensor
from .backend.stage_times import AFTER, StageTime
from .backend.tensors import input_tensor, output_tensor
from .common.errors import from_report
from .networks.idle_cores import IdleCores
from .networks.latent_decoding import decode_latents
from .networks.runtimes import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping


class TritonPythonModel(Model):
    """Decodes the latents of a batch (Triton only batches equal shapes) in one call."""

    def load(self, args: Mapping[str, str]) -> None:
        """Loads the autoencoder and decodes once at the default size."""
        settings = ModelSettings.from_triton(args)
        compute = ComputeSettings.from_settings(settings)
        self._after = StageTime(AFTER, settings.parameters["pipeline"])
        checkpoint = compute.checkpoint
        self._vae = checkpoint.load_vae(compute.device, compute.dtype)
        keep_freed_memory()
        Runtime().prepare(self._vae, compute.device)
        height, width = (side // checkpoint.vae_scale_factor for side in checkpoint.default_size)
        decode_latents(self._vae, torch.zeros(1, checkpoint.latent_channels, height, width))
        self._cores = IdleCores(self._vae) if compute.device.type == "cpu" else None

    def respond(self, requests: list[Any]) -> list[Any]:
        """IMAGE and INFO for final latents, INFO for progress, an error for a stream that ends without a picture."""
        return answer_all(requests, self._decode, "decoding")

    def _decode(self, requests: list[Any]) -> list[Any]:
        start = time.perf_counter()
        final = [not input_arrays(request, ["PREVIEW"])["PREVIEW"].any() for request in requests]
        latents = [input_tensor(request, "LATENTS") for request, last in zip(requests, final, strict=True) if last]
        rows = [len(tensor) for tensor in latents]
        with self._cores.borrowed() if self._cores else nullcontext():  # shards wait, where theirs was the only request
            images = iter(decode_latents(self._vae, torch.cat(latents)).split(rows) if latents else ())
        milliseconds = 1000 * (time.perf_counter() - start)
        responses = []
        for request, last in zip(requests, final, strict=True):
            image = next(images) if last else None
            info = json.loads(input_text(request, "INFO"))
            if "error" in info:
                responses.append(error_response(from_report(info["error"])))
                continue
            tensors = []
            if image is not None:
                info["timings_ms"]["vae_decoder"] = round(milliseconds, 3)
                self._after.note(max(0.0, time.time() - info.pop("done_at")))
                tensors.append(output_tensor("IMAGE", image))
            responses.append(pb_utils.InferenceResponse([*tensors, text_tensor("INFO", json.dumps(info))]))
        return responses
