"""A ControlNet of this server, called over BLS."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..backend.model_calls import ask_model
from ..backend.settings import response_texts, text_tensor
from ..backend.tensors import output_tensor, response_view
from ..common.errors import (
    ControlNetUnavailableError,
    ModelDownError,
    RequestError,
    row_failures,
)
from ..request.completed import use_to_json
from .answers import Answer, Downtime, late

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from ..request.completed import ControlNetUse

THREADS = 4
"""Calls of one ControlNet at a time: as often as a request of the step names it."""


class LocalControlNet:
    """The model `controlnet_NAME`, through threads of its own: one that hangs holds no other up."""

    def __init__(self, name: str, timeout_s: float) -> None:
        """Calls nothing yet.

        Args:
            name: What requests call it.
            timeout_s: A call that takes longer hangs; one that is down for longer ends its requests.
        """
        self._name, self._timeout_s = name, timeout_s
        self._threads = ThreadPoolExecutor(THREADS, f"controlnet-{name}")
        self._downtime = Downtime(timeout_s)
        self._running: dict[object, float] = {}

    def submit(self, tensors: Mapping[str, torch.Tensor], uses: Sequence[ControlNetUse]) -> Future[Answer]:
        """Starts a call; while one hangs, others fail at once."""
        now = time.monotonic()
        if any(now - started > self._timeout_s for started in list(self._running.values())):
            refused: Future[Answer] = Future()
            refused.set_exception(late(self._name))  # it hangs still: nobody else is to wait for it
            return refused
        call = object()
        self._running[call] = now  # not the future: it would keep the answer, which owns memory between models
        future = self._threads.submit(self._call, tensors, uses)
        future.add_done_callback(lambda _: self._running.pop(call, None))
        return future

    def _call(self, tensors: Mapping[str, torch.Tensor], uses: Sequence[ControlNetUse]) -> Answer:
        inputs = [output_tensor(name, tensor) for name, tensor in tensors.items()]
        inputs.append(text_tensor("CONTROL", *map(use_to_json, uses)))
        try:
            response = ask_model(f"controlnet_{self._name}", inputs, ["RESIDUALS", "FAILURES"])
        except ModelDownError as error:
            raise self._downtime.error(f'CONTROLNETS names "{self._name}": {error}') from error
        except RequestError as error:
            raise ControlNetUnavailableError(f'CONTROLNETS names "{self._name}": {error}') from error
        self._downtime.up()
        residuals = response_view(response, "RESIDUALS")
        return Answer(residuals, row_failures(response_texts(response, "FAILURES")), memory=response)
