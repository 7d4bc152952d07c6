"""One denoising step of a batch: which rows are evaluated here, which by shards that lend themselves."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ..backend.responses import as_request_error
from ..common.errors import ControlNetDownError, EntryLostError, RequestError
from . import advancing
from .placement import place
from .unet_calls import unet_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from .evaluator import Evaluated, Evaluator, StepTook
    from .peers import Peers
    from .run import Denoising
    from .unet_calls import UNetCall

    Predictions = dict[Denoising, dict[int, torch.Tensor]]

T = TypeVar("T")


class Stepping:
    """Takes steps on one shard, with the help of others."""

    def __init__(self, name: str, evaluator: Evaluator, peers: Peers) -> None:
        """Takes none yet.

        Args:
            name: Of the shard.
            evaluator: Its UNet.
            peers: The other shards.
        """
        self._name, self._evaluator, self._peers = name, evaluator, peers

    def __call__(self, batch: list[Denoising], announce: Callable[[int, int], None]) -> list[StepTook]:
        """Advances every run by one step; one whose evaluation or sampler fails gets its `failure`.

        Args:
            batch: The runs.
            announce: Told before it begins of the UNet's work and of ControlNets', of who has most: who has
                sent rows waits for them.

        Returns:
            Of the steps that have ended by now.
        """
        self._evaluator.begin_step()
        inputs = {run: given for run in batch if (given := _guarded([run], partial(_input, run))) is not None}
        stay = sum(run.is_mask_aware for run in inputs)
        peers = self._peers.lent(sum(len(run.halves) for run in inputs if not run.is_mask_aware) - (not stay))
        own, *others = place(list(inputs), 1 + len(peers), self._evaluator.row_costs)
        own_calls = unet_calls(own, inputs)
        theirs = [(peer, unet_calls(rows, inputs)) for peer, rows in zip(peers, others, strict=True)]
        loads = [self._load(own_calls), *(self._load(calls) for _, calls in theirs)]
        announce(*map(max, zip(*loads, strict=True)))
        sent = [(peer.name, call, self._peers.submit(peer, call)) for peer, calls in theirs for call in calls]
        predictions: Predictions = {run: {} for run in inputs}
        for call in own_calls:
            _distribute(call, self._name, self._evaluate(call), predictions)
        for name, call, answer in sent:
            result = answer.result()
            if result is None:  # it has runs of its own by now, or is down
                own_calls.append(call)
                loads[0] = self._load(own_calls)
                _distribute(call, self._name, self._evaluate(call), predictions)
            else:
                _distribute(call, name, result, predictions)
        for run in inputs:
            run.report.largest_batch = max(run.report.largest_batch, len(batch))
        whole = [run for run, halves in predictions.items() if run.failure is None and len(halves) == len(run.halves)]
        for runs in advancing.groups(whole):
            _guarded(runs, partial(advancing.advance, runs, predictions))
        return self._evaluator.end_step(*map(max, zip(*loads, strict=True)))

    def _evaluate(self, call: UNetCall) -> Evaluated | RequestError:
        try:
            return self._evaluator(call)
        except Exception as error:  # noqa: BLE001  one call's failure must not be that of the others
            return as_request_error(error, "evaluation")

    def _load(self, calls: Iterable[UNetCall]) -> tuple[int, int]:
        """Work of the UNet and of ControlNets."""
        return sum(map(self._evaluator.row_costs.work, calls)), sum(call.control_work for call in calls)


def _input(run: Denoising) -> tuple[torch.Tensor, torch.Tensor]:
    """What the UNet takes of a run; and what is to be left out, or kept, is looked up."""
    run.look_again()
    for half in run.halves:
        run.tokens(half)
    return run.model_input()


def _distribute(call: UNetCall, shard: str, result: Evaluated | RequestError, predictions: Predictions) -> None:
    """Gives every run of a call its row."""
    for row, (run, half) in enumerate(call.rows):
        run.report.shards.add(shard)
        if isinstance(result, RequestError):
            run.failure = result
        elif isinstance(failure := result.failures.get(row), ControlNetDownError):
            run.put_off(failure)
        elif isinstance(failure, EntryLostError):
            continue  # the step is taken again
        elif failure is not None:
            run.failure = failure
        else:
            predictions[run][half] = result.prediction[row : row + 1]
            run.loras.note_patch(run.step, result.patch_ms[row])
            if call.loras[row]:
                run.report.lora_path["beside" if result.beside[row] else "patched"] += 1
            run.note_stale(call.controls[row], result.stale[row])


def _guarded(runs: Iterable[Denoising], do: Callable[[], T]) -> T | None:
    """What the samplers of runs give; a failure ends these requests only."""
    try:
        return do()
    except Exception as error:  # noqa: BLE001
        for run in runs:
            run.failure = as_request_error(error, "denoising")
        return None
