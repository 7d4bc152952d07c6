"""The model `vae_decoder`: final latents become a picture, raw or as a file; those of a run that goes on, a preview."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
import triton_python_backend_utils as pb_utils

from .backend import metrics
from .backend.compute import ComputeSettings
from .backend.memory import keep_freed_memory
from .backend.model import Model
from .backend.request_ends import RequestEnds
from .backend.responses import answer_all, error_response
from .backend.settings import ModelSettings, bytes_tensor, input_bytes, text_tensor
from .backend.stage_times import AFTER, StageTime
from .backend.tensors import input_tensor, output_tensor
from .common.errors import InvalidRequestError, RequestError, from_report
from .engine.handover import Handover
from .networks.idle_cores import IdleCores
from .networks.linear_preview import LinearPreview
from .networks.picture_files import encode_picture, resized
from .networks.warm_up import tuned_convolutions
from .request.json_text import read_json
from .request.webui_text import KEYWORD, webui_text
from .shared_memory.pictures import Pictures

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from .request.outputs import FileOutput, PreviewDecoder

INFO_KEYWORD = "swiftdiffusion"
"""Of the text chunk with INFO in a PNG; A1111's text has one beside it."""


class TritonPythonModel(Model):
    """Decodes the latents of a batch (Triton only batches equal shapes) one by one; makes files beside each other."""

    computes = True

    def load(self, args: Mapping[str, str]) -> None:
        """Loads the autoencoder and decodes once at the default size."""
        settings = ModelSettings.from_triton(args)
        compute = ComputeSettings.from_settings(settings)
        self._after = StageTime(AFTER, settings.parameters["pipeline"])
        checkpoint = compute.checkpoint
        self._ends, self._busy = RequestEnds(), metrics.BusyTime(settings.name, settings.instance)
        self._is_half = settings.parameters["vae_float16"] == "1"
        vae = (
            checkpoint.load_half_vae(torch.device("cpu"))
            if self._is_half
            else checkpoint.load_vae(torch.device("cpu"), compute.dtype)
        )
        self._pictures = Pictures()
        self._encoders = ThreadPoolExecutor(os.cpu_count(), "encoder")
        self._linear = LinearPreview.from_json(settings.parameters["linear_preview"])
        keep_freed_memory()
        self._pixels = compute.runtime.decoder(vae, compute.device)
        height, width = (side // checkpoint.vae_scale_factor for side in checkpoint.default_size)
        with tuned_convolutions(compute.device):
            self._pixels(torch.zeros(1, checkpoint.latent_channels, height, width))
        self._cores = IdleCores(vae) if compute.device.type == "cpu" else None

    def respond(self, requests: list[Any]) -> list[Any]:
        """The picture and INFO for final latents, INFO for progress, an error for a stream that ends without one."""
        return answer_all(requests, self._decode, "decoding", self._failed)

    def _decode(self, requests: list[Any]) -> list[Any]:
        start = time.perf_counter()
        handovers = [_handover(request) for request in requests]
        for handover in handovers:
            if handover.ending is not None:
                self._ends.take(handover.ending.run_id)
        latents = [
            input_tensor(request, "LATENTS")
            for request, handover in zip(requests, handovers, strict=True)
            if handover.final
        ]
        rows = [len(tensor) for tensor in latents]
        # Shards wait, where theirs was the only request.
        borrowed = self._cores.borrowed() if self._cores else nullcontext()
        with self._busy.counted() if latents else nullcontext(), borrowed:
            images = iter(self._pixels(torch.cat(latents)).split(rows) if latents else ())
        milliseconds = 1000 * (time.perf_counter() - start)
        infos = [
            _info(request) if handover.final else {} for request, handover in zip(requests, handovers, strict=True)
        ]
        pictures = [
            self._picture(handover, next(images), info, milliseconds) if handover.final else None
            for handover, info in zip(handovers, infos, strict=True)
        ]
        return [
            self._on_the_way(request, handover) if picture is None else self._end(handover, picture, info)
            for request, handover, picture, info in zip(requests, handovers, pictures, infos, strict=True)
        ]

    def _picture(
        self, handover: Handover, image: torch.Tensor, info: dict[str, Any], milliseconds: float
    ) -> torch.Tensor | Future[bytes]:
        """A picture as its request wants it: its pixels, or a file, which is made beside the batch's others."""
        info["timings_ms"]["vae_decoder"] = round(milliseconds, 3)
        if self._is_half:
            info["vae_dtype"] = "float16"
        asked = handover.request
        if asked is not None and asked.edit is not None and asked.edit.composite and asked.edit.mask is not None:
            kept, mask = (torch.from_numpy(self._pictures.get(key)) for key in (asked.edit.picture, asked.edit.mask))
            image = image.where(mask[..., None] != 0, kept)
        if asked is None or asked.output is None:
            return image
        info["output_format"] = asked.output.format
        described = {INFO_KEYWORD: json.dumps(info), KEYWORD: webui_text(asked, info)} if asked.output.metadata else {}
        return self._encoders.submit(_timed_file, image[0].numpy(), asked.output, described, info["timings_ms"])

    def _end(self, handover: Handover, made: torch.Tensor | Future[bytes], info: dict[str, Any]) -> Any:
        """The response with a picture."""
        if isinstance(made, torch.Tensor):
            picture = output_tensor("IMAGE", made)
        else:
            picture = bytes_tensor("ENCODED_IMAGE", made.result())
        after_s = max(0.0, time.monotonic() - (handover.done_at or time.monotonic()))
        self._after.note(after_s)
        if handover.ending is not None:
            ending = handover.ending
            self._ends.picture(replace(ending, seconds={**ending.seconds, "vae": after_s}))
        return pb_utils.InferenceResponse([picture, text_tensor("INFO", json.dumps(info))])

    def _on_the_way(self, request: Any, handover: Handover) -> Any:
        """Progress with a preview or without, or why there will be no picture."""
        if handover.error is not None:
            return error_response(from_report(asdict(handover.error)))
        tensors, asked = [text_tensor("INFO", _text(request, "INFO"))], handover.request
        if asked is not None and asked.previews is not None:
            pixels = self._preview(input_tensor(request, "LATENTS"), asked.previews.decoder)
            small = resized(pixels, min(asked.previews.size, max(asked.height, asked.width)))
            tensors.append(bytes_tensor("ENCODED_IMAGE", encode_picture(small, asked.previews.file, {})))
        return pb_utils.InferenceResponse(tensors)

    def _preview(self, latents: torch.Tensor, decoder: PreviewDecoder) -> np.ndarray:
        """[h, w, 3] uint8 of [1, C, h', w'] latents."""
        if decoder == "linear":
            return self._linear(latents[0])
        with self._busy.counted():
            return self._pixels(latents)[0].numpy()

    def _failed(self, request: Any, error: RequestError) -> None:
        with suppress(InvalidRequestError):  # a client called this model by itself
            self._ends.failed(_handover(request).ending, error)


def _timed_file(pixels: np.ndarray, file: FileOutput, texts: dict[str, str], timings_ms: dict[str, float]) -> bytes:
    start = time.perf_counter()
    encoded = encode_picture(pixels, file, texts)
    timings_ms["encoding"] = round(1000 * (time.perf_counter() - start), 3)
    return encoded


def _handover(request: Any) -> Handover:
    return Handover.from_json(_text(request, "HANDOVER"))


def _info(request: Any) -> dict[str, Any]:
    """INFO of a run that is done; InvalidRequestError, if it is anything else."""
    wrong = "INFO is not what a denoiser writes"
    info = read_json(dict[str, Any], _text(request, "INFO"), wrong)
    if not isinstance(info.get("timings_ms"), dict) or not isinstance(info.get("scheduler"), str):
        raise InvalidRequestError(wrong)
    return info


def _text(request: Any, name: str) -> str:
    return input_bytes(request, name).decode("utf-8", "replace")
