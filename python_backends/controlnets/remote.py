"""A ControlNet of another Triton server, called over gRPC with the contract that it would have on this one."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tritonclient.utils import InferenceServerException

from ..backend.dead_models import is_dead
from ..common.errors import ControlNetUnavailableError, ImageUnavailableError, RequestError
from .answers import Answer, Downtime, late
from .remote_model import RemoteModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import torch

    from ..request.completed import ControlNetUse

PROBE_S = 2.0
"""While it does not answer in time, it is asked so often whether it is ready."""


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
        self._name, self._timeout_s, self._get_image = name, timeout_s, get_image
        self._model = RemoteModel(parts.netloc, f"controlnet_{parts.path.strip('/') or name}", timeout_s)
        self._is_late = False
        self._downtime = Downtime(timeout_s)

    def submit(self, tensors: Mapping[str, torch.Tensor], uses: Sequence[ControlNetUse]) -> Future[Answer]:
        """Starts a call; while the server does not answer in time, others fail at once."""
        if self._is_late:
            refused: Future[Answer] = Future()
            refused.set_exception(late(self._name, self._model.server))
            return refused
        owned = {name: tensor.numpy(force=True).copy() for name, tensor in tensors.items()}
        return asyncio.run_coroutine_threadsafe(self._call(owned, uses), _loop())

    async def _call(self, tensors: Mapping[str, np.ndarray], uses: Sequence[ControlNetUse]) -> Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._answer(tensors, uses)
                self._downtime.up()
                return answer
        except TimeoutError:
            self._is_late = True
            self._probing = asyncio.create_task(self._probe())
            raise late(self._name, self._model.server) from None
        except InferenceServerException as error:
            message = f'CONTROLNETS names "{self._name}" on {self._model.server}: {error.message()}'
            if is_dead(message) or "UNAVAILABLE" in str(error.status()):
                raise self._downtime.error(f"{message.rstrip('.')}; retry in a few seconds") from error
            raise ControlNetUnavailableError(message) from error

    async def _answer(self, tensors: Mapping[str, np.ndarray], uses: Sequence[ControlNetUse]) -> Answer:
        """The answer, after sending what pictures were lacking; a picture that cannot be sent is its rows' failure."""
        answer = await self._model.infer(tensors, uses)
        lacking = {row for row, error in answer.failures.items() if isinstance(error, ImageUnavailableError)}
        keys = sorted({key for row in lacking for key in uses[row].images})
        sent = await asyncio.gather(*map(self._send, keys), return_exceptions=True)
        unsent = {key: error for key, error in zip(keys, sent, strict=True) if error is not None}
        if len(unsent) < len(keys):
            answer = await self._model.infer(tensors, uses)
        failures = dict(answer.failures)
        for row in lacking & set(failures):
            reasons = [unsent[key] for key in uses[row].images if key in unsent]
            if reasons:
                failures[row] = _of_picture(self._name, self._model.server, reasons[0])
        return Answer(answer.residuals, failures, answer.memory)

    async def _send(self, key: str) -> None:
        await self._model.send_image(self._get_image(key))

    async def _probe(self) -> None:
        """Until the server answers again."""
        while self._is_late:
            await asyncio.sleep(PROBE_S)
            self._is_late = not await self._model.is_ready()


def _of_picture(name: str, server: str, error: BaseException) -> RequestError:
    if isinstance(error, RequestError):
        return error
    return ImageUnavailableError(f'CONTROL_IMAGES: the picture for "{name}" could not be sent to {server}: {error}')


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Where this process awaits its remote calls."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="remote-controlnets", daemon=True).start()
    return loop
