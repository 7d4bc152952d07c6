"""A ControlNet of another Triton server, called over gRPC with the contract that it would have on this one."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import torch
from tritonclient.grpc import InferInput, InferRequestedOutput, KeepAliveOptions
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from .completed_request import use_to_json
from .controlnet_answers import Answer
from .dead_models import RETRY_AFTER_S, is_dead
from .errors import ControlNetUnavailableError, ImageUnavailableError, row_failures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from .completed_request import ControlNetUse

KEEP_ALIVE = KeepAliveOptions(keepalive_time_ms=30_000, keepalive_timeout_ms=10_000)
DTYPES = {"FP32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16}


class RemoteControlNet:
    """The model `controlnet_NAME` of another server; a picture that the server lacks is sent to it once."""

    def __init__(self, name: str, url: str, timeout_s: float, get_image: Callable[[str], np.ndarray]) -> None:
        """Connects with the first call.

        Args:
            name: What requests call it.
            url: `grpc://HOST:PORT`, or with `/NAME` where it has another name there.
            timeout_s: Deadline of a call, pictures included.
            get_image: Picture [H, W, 3] uint8 of a key.
        """
        parts = urlsplit(url)
        self._name, self._server, self._timeout_s = name, parts.netloc, timeout_s
        self._model = f"controlnet_{parts.path.strip('/') or name}"
        self._get_image = get_image
        self._client: InferenceServerClient | None = None
        self._reload, self._reloaded = asyncio.Lock(), -RETRY_AFTER_S

    def submit(self, tensors: Mapping[str, torch.Tensor], uses: Sequence[ControlNetUse]) -> Future[Answer]:
        """Starts a call."""
        inputs = [_input(name, tensor.numpy(force=True)) for name, tensor in tensors.items()]
        inputs.append(_input("CONTROL", np.array([[use_to_json(use).encode()] for use in uses], dtype=object)))
        return asyncio.run_coroutine_threadsafe(self._call(inputs, uses), _loop())

    async def _call(self, inputs: list[InferInput], uses: Sequence[ControlNetUse]) -> Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._infer(inputs)
                lacking = {row for row, error in answer.failures.items() if isinstance(error, ImageUnavailableError)}
                if lacking:
                    keys = {key for row in lacking for key in uses[row].images}
                    await asyncio.gather(*(self._send(key) for key in keys))
                    answer = await self._infer(inputs)
        except (InferenceServerException, TimeoutError) as error:
            said = error.message() if isinstance(error, InferenceServerException) else "does not answer in time"
            raise ControlNetUnavailableError(f'CONTROLNETS names "{self._name}" on {self._server}: {said}') from error
        return answer

    async def _infer(self, inputs: list[InferInput]) -> Answer:
        """Asks; asks again if the model's process had died and could be loaded again."""
        try:
            result = await self._ask(inputs)
        except InferenceServerException as error:
            if not is_dead(error.message() or "") or time.monotonic() - self._reloaded < RETRY_AFTER_S:
                raise
            async with self._reload:
                if time.monotonic() - self._reloaded >= RETRY_AFTER_S:
                    await self._connected().unload_model(self._model)
                    try:
                        await self._connected().load_model(self._model)
                    finally:
                        self._reloaded = time.monotonic()
            result = await self._ask(inputs)
        response = result.get_response()
        described, raw = next(
            (each, raw)
            for each, raw in zip(response.outputs, response.raw_output_contents, strict=True)
            if each.name == "RESIDUALS"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nobody writes to it: a copy would be 100 MB a row for SDXL at 1024²
            flat = torch.frombuffer(raw, dtype=DTYPES[described.datatype])
        residuals = flat.reshape(*described.shape)
        failures = [text.decode("utf-8") for text in result.as_numpy("FAILURES").reshape(-1)]
        return Answer(residuals, row_failures(failures), memory=raw)

    async def _ask(self, inputs: list[InferInput]) -> Any:
        outputs = [InferRequestedOutput("RESIDUALS"), InferRequestedOutput("FAILURES")]
        return await self._connected().infer(self._model, inputs, outputs=outputs, client_timeout=self._timeout_s)

    async def _send(self, key: str) -> None:
        image = _input("IMAGE", self._get_image(key)[None])
        await self._connected().infer("control_images", [image], client_timeout=self._timeout_s)

    def _connected(self) -> InferenceServerClient:
        """Made in the loop that it belongs to."""
        if self._client is None:
            self._client = InferenceServerClient(self._server, keepalive_options=KEEP_ALIVE)
        return self._client


def _input(name: str, array: np.ndarray) -> Any:
    datatype = {"object": "BYTES", "uint8": "UINT8", "float32": "FP32"}[array.dtype.name]
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(np.ascontiguousarray(array))
    return tensor


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Where this process awaits its remote calls."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="remote-controlnets", daemon=True).start()
    return loop
