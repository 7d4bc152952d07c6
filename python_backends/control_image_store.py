"""The model `control_images`: pictures that other servers send for the ControlNets of this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from .backend.model import Model
from .backend.responses import answer_each
from .backend.settings import input_arrays, text_tensor
from .common.errors import InvalidRequestError
from .request.picture_inputs import MAX_SIDE
from .shared_memory.pictures import Pictures

if TYPE_CHECKING:
    from collections.abc import Mapping


class TritonPythonModel(Model):
    """Keeps each picture in shared memory under its hash, where `controlnet_NAME` finds it."""

    def load(self, args: Mapping[str, str]) -> None:
        """Opens the pictures of this server."""
        self._pictures = Pictures()

    def respond(self, requests: list[Any]) -> list[Any]:
        """KEY of every IMAGE [1, H, W, 3 or 4]."""
        return answer_each(requests, self._keep, "keeping a picture")

    def _keep(self, request: Any) -> Any:
        image = input_arrays(request, ["IMAGE"])["IMAGE"][0]
        height, width, channels = image.shape
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise InvalidRequestError(f"IMAGE is {height} high and {width} wide; allowed: 1 to {MAX_SIDE}")
        if channels not in (3, 4):
            raise InvalidRequestError(f"IMAGE has {channels} channels; allowed: 3 or 4")
        return pb_utils.InferenceResponse([text_tensor("KEY", self._pictures.put(image))])
