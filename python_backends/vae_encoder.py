"""The model `vae_encoder`: what latents of a request's picture are drawn from, which it leaves in shared memory."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils
from cachetools import LRUCache

from .backend.compute import ComputeSettings
from .backend.memory import keep_freed_memory
from .backend.metrics import BusyTime
from .backend.model import Model
from .backend.request_ends import Ending, RequestEnds
from .backend.responses import as_request_error, error_response
from .backend.settings import ModelSettings, input_text, text_tensor
from .networks.idle_cores import IdleCores
from .networks.kept_moments import KeptMoments
from .networks.latent_encoding import VaeEncoder, encode_picture
from .networks.runtimes import Runtime
from .networks.warm_up import tuned_convolutions
from .request.completed import CompletedRequest
from .request.encoding import NO_PICTURE, PictureEncoding
from .shared_memory.pictures import Pictures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .request.editing import Edit

MOST_KNOWN = 4096
"""Pictures whose moments' keys are remembered."""


class TritonPythonModel(Model):
    """Encodes pictures one by one, so that a picture's moments are the same in any company, and each once."""

    computes = True

    def load(self, args: Mapping[str, str]) -> None:
        """Loads the autoencoder's encoder and encodes once at the default size."""
        settings = ModelSettings.from_triton(args)
        compute = ComputeSettings.from_settings(settings)
        checkpoint = compute.checkpoint
        self._ends, self._busy = RequestEnds(), BusyTime(settings.name, settings.instance)
        self._pictures, self._kept = Pictures(), KeptMoments()
        self._known: LRUCache[tuple[str, ...], str] = LRUCache(MOST_KNOWN)
        self._takes_masked = checkpoint.only_inpaints
        self._encoder = VaeEncoder(checkpoint.load_vae(compute.device, compute.dtype, encodes=True))
        keep_freed_memory()
        Runtime().prepare(self._encoder, compute.device)
        with tuned_convolutions(compute.device):
            encode_picture(self._encoder, np.zeros((*checkpoint.default_size, 3), np.uint8))
        self._cores = IdleCores(self._encoder) if compute.device.type == "cpu" else None

    def respond(self, requests: list[Any]) -> list[Any]:
        """LATENT_KEYS: keys of the moments of the request's picture; of none for text to image."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        completed: CompletedRequest | None = None
        try:
            completed = CompletedRequest.from_json(input_text(request, "REQUEST"))
            encoding = NO_PICTURE
            if completed.edit is not None:
                self._ends.take(completed.run_id)
                encoding = self._encode(completed.edit)
                self._ends.hand_on(completed.run_id)
        except Exception as error:  # noqa: BLE001  what one request brings must not end the others
            reason = as_request_error(error, "encoding a picture")
            if completed is not None:
                self._ends.failed(Ending.of(completed), reason)
            return error_response(reason)
        return pb_utils.InferenceResponse([text_tensor("LATENT_KEYS", encoding.to_json())])

    def _encode(self, edit: Edit) -> PictureEncoding:
        started = time.perf_counter()
        # As in diffusers, where a UNet that inpaints begins with noise alone: the generator would go on differently.
        picture = None if self._takes_masked and edit.starts_from_noise else self._moments(edit.picture)
        masked = self._moments(edit.picture, edit.mask) if self._takes_masked and edit.mask else None
        return PictureEncoding(picture, masked, 1000 * (time.perf_counter() - started))

    def _moments(self, picture: str, mask: str | None = None) -> str:
        """Their key."""
        name = (picture,) if mask is None else (picture, mask)
        known = self._known.get(name)
        if known is not None and self._kept.has(known):
            return known
        pixels = self._pictures.get(picture)
        without = None if mask is None else self._pictures.get(mask)
        with self._busy.counted(), self._cores.borrowed() if self._cores else nullcontext():
            moments = encode_picture(self._encoder, pixels, without)
        self._known[name] = self._kept.put(moments)
        return self._known[name]
