"""The model `vae_decoder`: final latents become a picture; latents of a progress report become nothing."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import triton_python_backend_utils as pb_utils

from .backend import metrics
from .backend.compute import ComputeSettings
from .backend.memory import keep_freed_memory
from .backend.model import Model
from .backend.request_ends import Ending, RequestEnds
from .backend.responses import answer_all, error_response
from .backend.settings import ModelSettings, input_arrays, input_text, text_tensor
from .backend.stage_times import AFTER, StageTime
from .backend.tensors import input_tensor, output_tensor
from .common.errors import RequestError, from_report
from .networks.idle_cores import IdleCores
from .networks.latent_decoding import decode_latents
from .networks.runtimes import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping


class TritonPythonModel(Model):
    """Decodes the latents of a batch (Triton only batches equal shapes) in one call."""

    computes = True

    def load(self, args: Mapping[str, str]) -> None:
        """Loads the autoencoder and decodes once at the default size."""
        settings = ModelSettings.from_triton(args)
        compute = ComputeSettings.from_settings(settings)
        self._after = StageTime(AFTER, settings.parameters["pipeline"])
        checkpoint = compute.checkpoint
        self._ends, self._busy = RequestEnds(), metrics.BusyTime(settings.name, settings.instance)
        self._vae = checkpoint.load_vae(compute.device, compute.dtype)
        keep_freed_memory()
        Runtime().prepare(self._vae, compute.device)
        height, width = (side // checkpoint.vae_scale_factor for side in checkpoint.default_size)
        decode_latents(self._vae, torch.zeros(1, checkpoint.latent_channels, height, width))
        self._cores = IdleCores(self._vae) if compute.device.type == "cpu" else None

    def respond(self, requests: list[Any]) -> list[Any]:
        """IMAGE and INFO for final latents, INFO for progress, an error for a stream that ends without a picture."""
        return answer_all(requests, self._decode, "decoding", self._failed)

    def _decode(self, requests: list[Any]) -> list[Any]:
        start = time.perf_counter()
        final = [not input_arrays(request, ["PREVIEW"])["PREVIEW"].any() for request in requests]
        infos = [json.loads(input_text(request, "INFO")) for request in requests]
        endings = [_ending(info) for info in infos]
        for ending in endings:
            if ending is not None:
                self._ends.take(ending.run_id)
        latents = [input_tensor(request, "LATENTS") for request, last in zip(requests, final, strict=True) if last]
        rows = [len(tensor) for tensor in latents]
        # Shards wait, where theirs was the only request.
        borrowed = self._cores.borrowed() if self._cores else nullcontext()
        with self._busy.counted() if latents else nullcontext(), borrowed:
            images = iter(decode_latents(self._vae, torch.cat(latents)).split(rows) if latents else ())
        milliseconds = 1000 * (time.perf_counter() - start)
        responses = []
        for info, last, ending in zip(infos, final, endings, strict=True):
            image = next(images) if last else None
            if "error" in info:
                responses.append(error_response(from_report(info["error"])))
                continue
            tensors = []
            if image is not None:
                info["timings_ms"]["vae_decoder"] = round(milliseconds, 3)
                after_s = max(0.0, time.monotonic() - info.pop("done_at"))
                self._after.note(after_s)
                tensors.append(output_tensor("IMAGE", image))
                if ending is not None:
                    self._ends.picture(replace(ending, seconds={**ending.seconds, "vae": after_s}))
            responses.append(pb_utils.InferenceResponse([*tensors, text_tensor("INFO", json.dumps(info))]))
        return responses

    def _failed(self, request: Any, error: RequestError) -> None:
        self._ends.failed(_ending(json.loads(input_text(request, "INFO"))), error)


def _ending(info: dict[str, Any]) -> Ending | None:
    """Taken out of INFO, where it is for this model alone."""
    ending = info.pop("ending", None)
    return None if ending is None else Ending(**ending)
