"""A UNet shard's side of ControlNets: all of a step's called at once, beside the encoder half, and summed."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from .backend import output_tensor
from .errors import ControlNetUnavailableError, RequestError
from .model_calls import call_model
from .settings import as_request_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .completed_request import ControlNetUse

TENSORS = ("LATENTS", "TIMESTEPS", "ENCODER_HIDDEN_STATES", "TEXT_EMBEDS", "TIME_IDS")
"""Of a UNet's inputs, those that ControlNets take too."""

THREADS = 16
"""ControlNets called at a time, by all requests of a step."""

Place = tuple[int, int]
"""A row of the call, and the position of one of its ControlNets."""


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
    """The calls of one step, on their way."""

    def __init__(self, rows: int, calls: Mapping[str, tuple[list[Place], Future[torch.Tensor]]], deadline: float):
        """Made by `ControlNetCalls.start`."""
        self._rows, self._calls, self._deadline = rows, calls, deadline

    def wait(self) -> Residuals:
        """The sum, once all calls have ended or are late."""
        found: dict[Place, torch.Tensor] = {}
        failures: dict[int, RequestError] = {}
        for name, (places, future) in self._calls.items():
            try:
                answer = future.result(max(0.0, self._deadline - time.monotonic()))
                found |= dict(zip(places, answer, strict=True))
            except FutureTimeoutError:
                late = ControlNetUnavailableError(f'CONTROLNETS names "{name}", which does not answer in time')
                failures |= {row: late for row, _ in places}
            except Exception as error:  # noqa: BLE001  one ControlNet's failure is that of the rows that use it
                failed = as_request_error(error, f'CONTROLNETS names "{name}", which')
                failures |= {row: failed for row, _ in places}
        total = None
        for row, position in sorted(found):
            if total is None:
                total = torch.zeros(self._rows, found[row, position].numel())
            total[row] += found[row, position]
        return Residuals(total, failures)


class ControlNetCalls:
    """Calls the models `controlnet_NAME`."""

    def __init__(self, timeout_s: float) -> None:
        """Keeps the longest time that a call may take, in seconds."""
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="controlnet-call")

    def start(
        self, tensors: Mapping[str, torch.Tensor], controls: Sequence[Sequence[ControlNetUse]]
    ) -> PendingResiduals:
        """Calls every ControlNet that a row uses, once for all its rows.

        Args:
            tensors: Of the UNet's call; LATENTS [B, C, h, w] and the others, a row each.
            controls: The active ControlNets of every row.
        """
        places: dict[str, list[Place]] = {}
        for row, uses in enumerate(controls):
            for position, use in enumerate(uses):
                places.setdefault(use.name, []).append((row, position))
        calls = {}
        for name, own in places.items():
            uses = [controls[row][position] for row, position in own]
            calls[name] = own, self._threads.submit(_call, name, tensors, [row for row, _ in own], uses)
        return PendingResiduals(len(controls), calls, time.monotonic() + self._timeout_s)


def _call(
    name: str, tensors: Mapping[str, torch.Tensor], rows: list[int], uses: Sequence[ControlNetUse]
) -> torch.Tensor:
    taken = {key: tensor for key, tensor in tensors.items() if key in TENSORS}
    if rows != list(range(len(taken["LATENTS"]))):
        taken = {key: tensor[rows] for key, tensor in taken.items()}
    inputs = [output_tensor(key, tensor) for key, tensor in taken.items()]
    inputs += [
        pb_utils.Tensor("IMAGE", np.array([[use.image.encode()] for use in uses], dtype=object)),
        pb_utils.Tensor("SCALE", np.array([[use.scale] for use in uses], np.float32)),
        pb_utils.Tensor("GUESS_MODE", np.array([[use.guess_mode] for use in uses])),
    ]
    try:
        response = call_model(f"controlnet_{name}", inputs, ["RESIDUALS"])
    except RequestError as error:
        raise ControlNetUnavailableError(f'CONTROLNETS names "{name}": {error}') from error
    tensor = pb_utils.get_output_tensor_by_name(response, "RESIDUALS")
    return torch.from_dlpack(tensor.to_dlpack()).clone()  # the response's memory goes with it
