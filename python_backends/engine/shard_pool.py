"""The UNet shards as a denoiser sees them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import triton_python_backend_utils as pb_utils

from ..backend.metrics import TRANSFERRED, Counter
from ..backend.model_calls import call_model
from ..backend.responses import as_request_error
from ..backend.settings import response_texts, text_tensor
from ..backend.tensors import output_tensor, response_tensor
from ..common.errors import RequestError, UnexpectedError, row_failures
from ..lora.files.lora_set import NO_LORAS, LoraSet, set_to_json
from ..request.completed import uses_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from .unet_calls import UNetCall


@dataclass(frozen=True)
class ShardResult:
    """What a shard answered.

    Attributes:
        prediction: [B, C, h, w] float32.
        patch_ms: What making the call's LoRA set resident took; 0 if it was.
        failures: Row → why its prediction is of no use.
        stale: For each row, which of its ControlNets gave residuals of the previous step.
    """

    prediction: torch.Tensor
    patch_ms: float
    failures: Mapping[int, RequestError]
    stale: Sequence[Sequence[int]]


class ShardPool:
    """Calls named shards in parallel.

    Attributes:
        names: Models.
        resident: The LoRA set that this process last sent to each; another denoiser may have changed it since.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._bytes = Counter(*TRANSFERRED)
        self.resident: list[LoraSet] = [NO_LORAS] * len(self.names)
        self._threads = ThreadPoolExecutor(max_workers=4 * len(self.names), thread_name_prefix="shard-call")

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
                results[number] = self._evaluate_one(*calls[number])
                self.resident[calls[number][0]] = calls[number][1].loras

        first, *others = by_shard.values() or [[]]
        futures = [self._threads.submit(evaluate, numbers) for numbers in others]
        evaluate(first)  # in this thread
        for future in futures:
            future.result()
        return results

    def _evaluate_one(self, shard: int, call: UNetCall) -> ShardResult | RequestError:
        name = self.names[shard]
        try:
            result = _evaluated(name, call)
            self._bytes.add(sum(tensor.nbytes for tensor in call.tensors.values()), model=name, direction="to")
            self._bytes.add(result.prediction.nbytes, model=name, direction="from")
            return result
        except Exception as error:  # noqa: BLE001  one call's failure must not be that of the others
            return as_request_error(error, name)


def _evaluated(shard: str, call: UNetCall) -> ShardResult:
    inputs = [output_tensor(name, tensor) for name, tensor in call.tensors.items()]
    inputs.append(text_tensor("LORA_SET", *[set_to_json(call.loras)] * len(call.rows)))
    inputs.append(text_tensor("LORAS_AHEAD", *[set_to_json(call.ahead)] * len(call.rows)))
    inputs.append(text_tensor("CONTROLS", *(uses_to_json(uses) for uses in call.controls)))
    response = call_model(shard, inputs, ["NOISE_PRED", "PATCH_MS", "FAILURES", "STALE"])
    patch_ms = pb_utils.get_output_tensor_by_name(response, "PATCH_MS").as_numpy()
    return ShardResult(
        response_tensor(response, "NOISE_PRED"),
        float(patch_ms.max()),
        row_failures(response_texts(response, "FAILURES")),
        [json.loads(positions) for positions in response_texts(response, "STALE")],
    )
