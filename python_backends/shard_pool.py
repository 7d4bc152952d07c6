"""The UNet shards as a denoiser sees them: called over BLS, and reloaded when they die."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
import triton_python_backend_utils as pb_utils

from .backend import output_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .denoising import UNetCall


SIGNS_OF_A_DEAD_SHARD = ("not healthy", "unknown model", "no available versions")
"""In the errors of a shard whose process died, was stopped or was unloaded. A Python exception in a shard that lives on
and the refusals of a server that is shutting down have none of them: reloading would not help."""


class ShardError(RuntimeError):
    """A shard that gives no answer, by name, even after it was reloaded."""


class ShardPool:
    """Calls named shards in parallel. A call that meets a dead shard reloads it once and is repeated.

    Triton 2.51 never restarts a Python backend's process that died: the model stays READY and fails every request,
    until it is unloaded and loaded again. That works with explicit model control.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._threads = ThreadPoolExecutor(max_workers=4 * len(self.names), thread_name_prefix="shard-call")
        self._reloading = {name: threading.Lock() for name in self.names}
        self._loads = dict.fromkeys(self.names, 0)

    def evaluate(self, calls: Sequence[tuple[int, UNetCall]]) -> list[torch.Tensor | ShardError]:
        """Noise predictions [B, C, h, w] of every (shard index, call), all calls at once.

        A shard that stays down gives its error in place of its predictions: other requests of the step go on.
        """
        if not calls:
            return []
        others = self._threads.map(self._evaluate_one, calls[1:])  # starts them; this thread makes the first call
        return [self._evaluate_one(calls[0]), *others]

    def _evaluate_one(self, placed: tuple[int, UNetCall]) -> torch.Tensor | ShardError:
        shard, call = placed
        name = self.names[shard]
        loads = self._loads[name]
        response = self._exec(name, call)
        if response.has_error():
            message = response.error().message()
            if not any(sign in message for sign in SIGNS_OF_A_DEAD_SHARD):
                return ShardError(f"{name} failed: {message}")
            pb_utils.Logger.log_warn(f"{name} is down and is reloaded: {message}")
            try:
                self._reload(name, loads)
            except pb_utils.TritonModelException as error:
                return ShardError(f"{name} is down and does not load again: {error}")
            response = self._exec(name, call)
            if response.has_error():
                return ShardError(f"{name} fails, also after a reload: {response.error().message()}")
        return _tensor(response)

    @staticmethod
    def _exec(name: str, call: UNetCall) -> Any:
        inputs = [output_tensor(tensor_name, tensor) for tensor_name, tensor in call.tensors.items()]
        request = pb_utils.InferenceRequest(model_name=name, requested_output_names=["NOISE_PRED"], inputs=inputs)
        return request.exec()

    def _reload(self, name: str, loads_seen: int) -> None:
        with self._reloading[name]:
            if self._loads[name] == loads_seen:
                pb_utils.unload_model(name)
                pb_utils.load_model(name)
                self._loads[name] += 1


def _tensor(response: Any) -> torch.Tensor:
    prediction = pb_utils.get_output_tensor_by_name(response, "NOISE_PRED")
    return torch.from_dlpack(prediction.to_dlpack()).clone()  # the response's memory goes with it
