"""The model `cancel`: REQUEST_ID in, whether such a request was running out."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .cancellation import cancel_request
from .settings import input_text


class TritonPythonModel:
    """Takes running requests off their denoiser at its next step."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """CANCELLED for each request."""
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("CANCELLED", np.array([[cancel_request(input_text(request, "REQUEST_ID"))]]))]
            )
            for request in requests
        ]
