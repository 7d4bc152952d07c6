"""The model `cancel`: REQUEST_ID in, whether such a request ran or waited out.

Its process, of which a server with pipelines has one, tells the metrics of the watcher too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .backend.model import Model
from .backend.responses import answer_each
from .backend.settings import input_arrays
from .backend.watch_metrics import WatchMetrics
from .common.pulse import DOOR
from .common.runtime_directory import runtime_directory
from .request.cancellation import RequestRegistry
from .request.parsing import parse_request_id

if TYPE_CHECKING:
    from collections.abc import Mapping


class TritonPythonModel(Model):
    """Takes requests off their denoiser at its next step, or when they get a place in it."""

    doing = DOOR

    def load(self, args: Mapping[str, str]) -> None:
        """Opens the server's registry."""
        self._registry = RequestRegistry()
        self._watch = WatchMetrics(runtime_directory())

    def respond(self, requests: list[Any]) -> list[Any]:
        """CANCELLED for each request."""
        return answer_each(requests, self._cancel, "cancelling")

    def close(self) -> None:
        """Tells no more of the watcher."""
        self._watch.close()

    def _cancel(self, request: Any) -> Any:
        cancelled = self._registry.cancel(parse_request_id(input_arrays(request, ["REQUEST_ID"])))
        return pb_utils.InferenceResponse([pb_utils.Tensor("CANCELLED", np.array([[cancelled]]))])
