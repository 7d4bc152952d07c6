"""The model `control_images`: pictures that other servers send for the ControlNets of this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from .backend.model import Model
from .backend.responses import answer_each
from .backend.settings import input_arrays, text_tensor
from .common.errors import InvalidRequestError
from .controlnets.images import ControlImages
from .request.controlnets import MAX_CONTROL_SIDE

if TYPE_CHECKING:
    from collections.abc import Mapping


class TritonPythonModel(Model):
    """Keeps each picture in shared memory under its hash, where `controlnet_NAME` finds it."""

    def load(self, args: Mapping[str, str]) -> None:
        """Opens the pictures of this server."""
        self._images = ControlImages()

    def respond(self, requests: list[Any]) -> list[Any]:
        """KEY of every IMAGE [1, H, W, 3]."""
        return answer_each(requests, self._keep, "keeping a picture")

    def _keep(self, request: Any) -> Any:
        image = input_arrays(request, ["IMAGE"])["IMAGE"][0]
        height, width = image.shape[:2]
        if not (1 <= height <= MAX_CONTROL_SIDE and 1 <= width <= MAX_CONTROL_SIDE):
            raise InvalidRequestError(f"IMAGE is {height} high and {width} wide; allowed: 1 to {MAX_CONTROL_SIDE}")
        return pb_utils.InferenceResponse([text_tensor("KEY", self._images.put(image, height, width))])
