"""The gRPC side of a ControlNet on another server: batches within its limit, and loading it again when it has died."""

from __future__ import annotations

import asyncio
import fcntl
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tritonclient.grpc import InferInput, InferRequestedOutput, KeepAliveOptions
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from ..backend.dead_models import RETRY_AFTER_S, is_dead
from ..common.errors import row_failures
from ..common.runtime_directory import runtime_directory
from ..request.completed import use_to_json
from .answers import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from ..request.completed import ControlNetUse

KEEP_ALIVE = KeepAliveOptions(keepalive_time_ms=30_000, keepalive_timeout_ms=10_000)
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
        self._reload, self._reloaded = asyncio.Lock(), -RETRY_AFTER_S

    async def infer(self, tensors: Mapping[str, np.ndarray], uses: Sequence[ControlNetUse]) -> Answer:
        """Residuals of the rows, in as many calls as the server's batch size asks for.

        Raises:
            InferenceServerException: If it cannot be reached or answers with an error.
        """
        if self._most_rows is None:
            config = await self._ask_again_if_dead(self._connected().get_model_config, self._model)
            self._most_rows = max(1, config.config.max_batch_size)
        starts = range(0, len(uses), self._most_rows)
        parts = [slice(start, start + self._most_rows) for start in starts]
        answers = [
            await self._ask_again_if_dead(
                self._infer, {name: array[part] for name, array in tensors.items()}, uses[part]
            )
            for part in parts
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

    async def _ask_again_if_dead(self, ask: Any, *arguments: Any) -> Any:
        """Asks; where the model's process has died or it is not loaded, has it loaded and asks again.

        One of this machine's callers at a time: the next finds it alive. A caller on another machine may do the same at
        the same time: its load replaces a living process by another one, without a gap.
        """
        try:
            return await ask(*arguments)
        except InferenceServerException as error:
            if not is_dead(error.message() or ""):
                raise
        async with self._reload, _alone_on_this_machine(f"{self.server}.{self._model}"):
            try:
                return await ask(*arguments)
            except InferenceServerException as error:
                is_tried = time.monotonic() - self._reloaded < RETRY_AFTER_S
                if is_tried or not is_dead(error.message() or ""):
                    raise
                await self._load(error)
            return await ask(*arguments)

    async def _load(self, error: InferenceServerException) -> None:
        """Has the server load the model; where it does not allow that, what was wrong before is the error.

        Triton ignores the loading of a model that it takes for loaded, dead or not, unless its config differs: a
        parameter says when. One that is on its way is waited for.
        """
        try:
            if "not healthy" in (error.message() or ""):
                described = await self._connected().get_model_config(self._model, as_json=True)
                config = described["config"]
                config.setdefault("parameters", {})["reloaded_at"] = {"string_value": str(time.time())}
                await self._connected().load_model(self._model, config=json.dumps(config))
            else:
                await self._connected().load_model(self._model)
        except InferenceServerException as refusal:
            raise error from refusal
        finally:
            self._reloaded = time.monotonic()

    def _connected(self) -> InferenceServerClient:
        """Made in the loop that it belongs to."""
        if self._client is None:
            self._client = InferenceServerClient(self.server, keepalive_options=KEEP_ALIVE)
        return self._client


@asynccontextmanager
async def _alone_on_this_machine(name: str) -> AsyncIterator[None]:
    """Waits until no other process of this server holds the name."""
    with (runtime_directory() / f"{name}.lock").open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.1)  # not in a thread: a caller that gives up would leave it holding the lock
        yield


def _input(name: str, array: np.ndarray) -> Any:
    datatype = {"object": "BYTES", "uint8": "UINT8", "float32": "FP32"}[array.dtype.name]
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(np.ascontiguousarray(array))
    return tensor
