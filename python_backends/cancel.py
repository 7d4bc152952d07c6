"""The model `cancel`: REQUEST_ID in, whether such a request ran or waited out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .backend.settings import error_response, input_arrays
from .common.errors import InvalidRequestError
from .request.cancellation import RequestRegistry
from .request.parsing import parse_request_id

if TYPE_CHECKING:
    from collections.abc import Mapping


class TritonPythonModel:
    """Takes requests off their denoiser at its next step, or when they get a place in it."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Opens the server's registry."""
        self._registry = RequestRegistry()

    def execute(self, requests: list[Any]) -> list[Any]:
        """CANCELLED for each request."""
        return [self._cancel(request) for request in requests]

    def _cancel(self, request: Any) -> Any:
        try:
            request_id = parse_request_id(input_arrays(request, ["REQUEST_ID"]))
        except InvalidRequestError as error:
            return error_response(error)
        cancelled = self._registry.cancel(request_id)
        return pb_utils.InferenceResponse([pb_utils.Tensor("CANCELLED", np.array([[cancelled]]))])
