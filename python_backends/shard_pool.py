"""The UNet shards as a denoiser sees them: called over BLS, and reloaded when they die."""

from __future__ import annotations

import fcntl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from .backend import output_tensor
from .errors import RequestError, ShardDownError, ShardFailedError, UnexpectedError
from .lora.lora_set import NO_LORAS, LoraSet, set_to_json
from .runtime import runtime_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .denoising import UNetCall

SIGNS_OF_A_DEAD_SHARD = ("not healthy", "unknown model", "no available versions")
"""In the errors of a shard whose process died, was stopped or was unloaded. A Python exception in a shard that lives on
and the refusals of a server that is shutting down have none of them: reloading would not help."""


@dataclass(frozen=True)
class ShardResult:
    """What a shard answered.

    Attributes:
        prediction: [B, C, h, w] float32.
        patch_ms: What making the call's LoRA set resident took; 0 if it was.
    """

    prediction: torch.Tensor
    patch_ms: float


class ShardPool:
    """Calls named shards in parallel. A call that meets a dead shard reloads it once and is repeated.

    Triton 2.51 never restarts a Python backend's process that died: the model stays READY and fails every request,
    until it is unloaded and loaded again. That works with explicit model control.

    Attributes:
        names: Models.
        resident: The LoRA set that this process last sent to each; another denoiser may have changed it since.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.resident: list[LoraSet] = [NO_LORAS] * len(self.names)
        self._threads = ThreadPoolExecutor(max_workers=4 * len(self.names), thread_name_prefix="shard-call")
        self._locks = runtime_directory()

    def evaluate(self, calls: Sequence[tuple[int, UNetCall]]) -> list[ShardResult | RequestError]:
        """The results of every (shard index, call), all calls at once.

        A shard that stays down gives its error in place of its predictions: other requests of the step go on.
        """
        by_shard: dict[int, list[int]] = {}
        for number, (shard, _) in enumerate(calls):
            by_shard.setdefault(shard, []).append(number)
        results: list[ShardResult | RequestError] = [UnexpectedError("not evaluated")] * len(calls)

        def evaluate(numbers: list[int]) -> None:
            """One shard's calls, in their order: sets are swapped as rarely as can be."""
            for number in numbers:
                results[number] = self._evaluate_one(calls[number])
                self.resident[calls[number][0]] = calls[number][1].loras

        first, *others = by_shard.values() or [[]]
        futures = [self._threads.submit(evaluate, numbers) for numbers in others]
        evaluate(first)  # in this thread
        for future in futures:
            future.result()
        return results

    def _evaluate_one(self, placed: tuple[int, UNetCall]) -> ShardResult | RequestError:
        name, call = self.names[placed[0]], placed[1]
        response = _exec(name, call)
        if response.has_error() and _is_dead(response):
            try:
                response = self._revive(name, call)
            except pb_utils.TritonModelException as error:
                return ShardDownError(f"{name} is down and does not load again: {error}")
        if response.has_error():
            message = f"{name} failed: {response.error().message()}"
            return ShardDownError(message) if _is_dead(response) else ShardFailedError(message)
        prediction = pb_utils.get_output_tensor_by_name(response, "NOISE_PRED")
        patch_ms = pb_utils.get_output_tensor_by_name(response, "PATCH_MS").as_numpy()
        return ShardResult(
            torch.from_dlpack(prediction.to_dlpack()).clone(),  # the response's memory goes with it
            float(patch_ms.max()),
        )

    def _revive(self, name: str, call: UNetCall) -> Any:
        """Asks again; reloads the shard if it is dead still. One denoiser at a time: the next finds it alive."""
        with (self._locks / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            response = _exec(name, call)
            if response.has_error() and _is_dead(response):
                pb_utils.Logger.log_warn(f"{name} is down and is reloaded: {response.error().message()}")
                pb_utils.unload_model(name)
                pb_utils.load_model(name)
                response = _exec(name, call)
            return response


def _exec(name: str, call: UNetCall) -> Any:
    inputs = [output_tensor(tensor_name, tensor) for tensor_name, tensor in call.tensors.items()]
    loras = np.full((len(call.rows), 1), set_to_json(call.loras).encode(), dtype=object)
    return pb_utils.InferenceRequest(
        model_name=name,
        requested_output_names=["NOISE_PRED", "PATCH_MS"],
        inputs=[*inputs, pb_utils.Tensor("LORA_SET", loras)],
    ).exec()


def _is_dead(response: Any) -> bool:
    return any(sign in response.error().message() for sign in SIGNS_OF_A_DEAD_SHARD)
