"""The gRPC side of a ControlNet on another server: batches within its limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from ..common.errors import row_failures
from ..request.completed import use_to_json
from .answers import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..request.completed import ControlNetUse

CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # else up to two minutes after a server that was started again
]
DTYPES = {"FP32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16}
READY_S = 5.0
"""Longest wait for the answer whether it is ready."""


class RemoteModel:
    """A ControlNet's model. Its methods run in one event loop.

    Attributes:
        server: HOST:PORT.
    """

    def __init__(self, server: str, model: str, timeout_s: float) -> None:
        """Connects with the first call; each may take so many seconds."""
        self.server, self._model, self._timeout_s = server, model, timeout_s
        self._client: InferenceServerClient | None = None
        self._most_rows: int | None = None

    async def infer(self, tensors: Mapping[str, np.ndarray], uses: Sequence[ControlNetUse]) -> Answer:
        """Residuals of the rows, in as many calls as the server's batch size asks for.

        Raises:
            InferenceServerException: If it cannot be reached or answers with an error.
        """
        if self._most_rows is None:
            config = await self._connected().get_model_config(self._model)
            self._most_rows = max(1, config.config.max_batch_size)
        starts = range(0, len(uses), self._most_rows)
        parts = [slice(start, start + self._most_rows) for start in starts]
        answers = [
            await self._infer({name: array[part] for name, array in tensors.items()}, uses[part]) for part in parts
        ]
        if len(answers) == 1:
            return answers[0]
        failures = {
            part.start + row: error
            for part, answer in zip(parts, answers, strict=True)
            for row, error in answer.failures.items()
        }
        return Answer(torch.cat([answer.residuals for answer in answers]), failures)

    async def send_image(self, image: np.ndarray) -> None:
        """Gives the server a picture: [H, W, 3] uint8."""
        await self._connected().infer("control_images", [_input("IMAGE", image[None])], client_timeout=self._timeout_s)

    async def is_ready(self) -> bool:
        """Whether the server says that the model is."""
        try:
            return bool(await self._connected().is_model_ready(self._model, client_timeout=READY_S))
        except InferenceServerException:
            return False

    async def _infer(self, tensors: Mapping[str, np.ndarray], uses: Sequence[ControlNetUse]) -> Answer:
        inputs = [_input(name, array) for name, array in tensors.items()]
        inputs.append(_input("CONTROL", np.array([[use_to_json(use).encode()] for use in uses], dtype=object)))
        outputs = [InferRequestedOutput("RESIDUALS"), InferRequestedOutput("FAILURES")]
        result = await self._connected().infer(self._model, inputs, outputs=outputs, client_timeout=self._timeout_s)
        response = result.get_response()
        described, raw = next(
            (each, raw)
            for each, raw in zip(response.outputs, response.raw_output_contents, strict=True)
            if each.name == "RESIDUALS"
        )
        residuals = torch.frombuffer(bytearray(raw), dtype=DTYPES[described.datatype]).reshape(*described.shape)
        failures = [text.decode("utf-8") for text in result.as_numpy("FAILURES").reshape(-1)]
        return Answer(residuals, row_failures(failures))

    def _connected(self) -> InferenceServerClient:
        """Made in the loop that it belongs to."""
        if self._client is None:
            self._client = InferenceServerClient(self.server, channel_args=CHANNEL)
        return self._client


def _input(name: str, array: np.ndarray) -> Any:
    datatype = {"object": "BYTES", "uint8": "UINT8", "float32": "FP32"}[array.dtype.name]
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(np.ascontiguousarray(array))
    return tensor
