"""A UNet shard's side of ControlNets: all of a step's called at once, beside the encoder half, and summed."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from .backend import output_tensor, response_tensor
from .errors import ControlNetUnavailableError, RequestError
from .model_calls import call_model
from .settings import as_request_error, text_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .completed_request import ControlNetUse

TENSORS = ("LATENTS", "TIMESTEPS", "ENCODER_HIDDEN_STATES", "TEXT_EMBEDS", "TIME_IDS")
"""Of a UNet's inputs, those that ControlNets take too."""

THREADS = 4
"""Calls of one ControlNet at a time: as often as a request of the step names it."""

Place = tuple[int, int]
"""A row of the call, and the position of one of its ControlNets."""


@dataclass(frozen=True)
class _Call:
    name: str
    places: list[Place]
    future: Future[torch.Tensor]


@dataclass(frozen=True)
class Residuals:
    """What a step's ControlNets gave.

    Attributes:
        total: [B, sum of C·h·w], summed per row in the request's order; None if no row has any.
        failures: Row → why it has none.
    """

    total: torch.Tensor | None
    failures: Mapping[int, RequestError]


class PendingResiduals:
    """The calls of one step, on their way; a context manager, at whose end no call is started any more."""

    def __init__(self, rows: int, calls: Sequence[_Call], deadline: float) -> None:
        """Made by `ControlNetCalls.start`."""
        self._rows, self._calls, self._deadline = rows, calls, deadline

    def __enter__(self) -> PendingResiduals:
        return self

    def __exit__(self, *_: object) -> None:
        for call in self._calls:
            call.future.cancel()  # what has not started yet: its tensors are valid only until now

    def wait(self) -> Residuals:
        """The sum, once all calls have ended or are late."""
        found: dict[Place, torch.Tensor] = {}
        failures: dict[int, RequestError] = {}
        for call in self._calls:
            try:
                answer = call.future.result(max(0.0, self._deadline - time.monotonic()))
                found |= dict(zip(call.places, answer, strict=True))
            except (FutureTimeoutError, CancelledError):
                failures |= dict.fromkeys((row for row, _ in call.places), _late(call.name))
            except Exception as error:  # noqa: BLE001  one ControlNet's failure is that of the rows that use it
                failed = as_request_error(error, f'CONTROLNETS names "{call.name}", whose call')
                failures |= dict.fromkeys((row for row, _ in call.places), failed)
        total = None
        for row, position in sorted(found):
            if total is None:
                total = torch.zeros(self._rows, found[row, position].numel())
            total[row] += found[row, position]
        return Residuals(total, failures)


class ControlNetCalls:
    """Calls the models `controlnet_NAME`, each through threads of its own: one that hangs holds no other up."""

    def __init__(self, timeout_s: float) -> None:
        """Keeps the longest time that a call may take, in seconds."""
        self._timeout_s = timeout_s
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._last: dict[str, tuple[float, Future[torch.Tensor]]] = {}

    def start(
        self, tensors: Mapping[str, torch.Tensor], controls: Sequence[Sequence[ControlNetUse]]
    ) -> PendingResiduals:
        """Calls every ControlNet that a row uses, once for all its rows; once more for rows that use it twice.

        Args:
            tensors: Of the UNet's call; LATENTS [B, C, h, w] and the others, a row each.
            controls: The active ControlNets of every row.
        """
        places: dict[tuple[str, int], list[Place]] = {}
        for row, uses in enumerate(controls):
            names = [use.name for use in uses]
            for position, name in enumerate(names):
                places.setdefault((name, names[:position].count(name)), []).append((row, position))
        calls = []
        for (name, _), own in places.items():
            uses = [controls[row][position] for row, position in own]
            calls.append(_Call(name, own, self._submit(name, tensors, [row for row, _ in own], uses)))
        return PendingResiduals(len(controls), calls, time.monotonic() + self._timeout_s)

    def _submit(
        self, name: str, tensors: Mapping[str, torch.Tensor], rows: list[int], uses: Sequence[ControlNetUse]
    ) -> Future[torch.Tensor]:
        started, last = self._last.get(name, (0.0, None))
        if last is not None and not last.done() and time.monotonic() - started > self._timeout_s:
            refused: Future[torch.Tensor] = Future()
            refused.set_exception(_late(name))  # it hangs still: nobody else is to wait for it
            return refused
        threads = self._threads.get(name)
        if threads is None:
            threads = self._threads[name] = ThreadPoolExecutor(THREADS, f"controlnet-{name}")
        future = threads.submit(_call, name, tensors, rows, uses)
        self._last[name] = time.monotonic(), future
        return future


def _late(name: str) -> ControlNetUnavailableError:
    return ControlNetUnavailableError(f'CONTROLNETS names "{name}", which does not answer in time')


def _call(
    name: str, tensors: Mapping[str, torch.Tensor], rows: list[int], uses: Sequence[ControlNetUse]
) -> torch.Tensor:
    taken = {key: tensor for key, tensor in tensors.items() if key in TENSORS}
    if rows != list(range(len(taken["LATENTS"]))):
        taken = {key: tensor[rows] for key, tensor in taken.items()}
    inputs = [output_tensor(key, tensor) for key, tensor in taken.items()]
    inputs += [
        text_tensor("IMAGE", *(use.image for use in uses)),
        pb_utils.Tensor("SCALE", np.array([[use.scale] for use in uses], np.float32)),
        pb_utils.Tensor("GUESS_MODE", np.array([[use.guess_mode] for use in uses])),
    ]
    try:
        response = call_model(f"controlnet_{name}", inputs, ["RESIDUALS"])
    except RequestError as error:
        raise ControlNetUnavailableError(f'CONTROLNETS names "{name}": {error}') from error
    return response_tensor(response, "RESIDUALS")
