"""One shard's UNet with its LoRAs and ControlNets: noise predictions of whatever rows it is given."""

from __future__ import annotations

import time
from collections import ChainMap
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..backend.metrics import TRANSFERRED, Counter, Histogram
from ..common.errors import RequestError
from ..lora.patching.beside import zeros
from ..lora.patching.patcher import Patcher
from ..networks.unet import example
from ..networks.unet_halves import residual_size
from ..networks.warm_up import SLOW_S
from .load_plans import LoadPlans
from .measured import Measured, call_seconds, now, time_of
from .mixing import LoraCosts, Part, mixes, plan
from .row_costs import RowCosts
from .token_calls import token_call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..controlnets.calls import ControlNetCalls
    from ..lora.files.lora_set import LoraSet
    from ..lora.patching.resident import ResidentLoras
    from ..networks.checkpoint import Checkpoint
    from ..networks.unet import UNet
    from .shard_metrics import ShardMetrics
    from .unet_calls import UNetCall


MEASURED_ROWS, MEASURED_RANK = 4, 16
"""Two guided requests with small LoRAs."""

LOOK_AFTER = 2, 64
"""Least and most calls in a row that sets share before those apart are measured again."""


@dataclass(frozen=True)
class Evaluated:
    """What came of a call, by row.

    Attributes:
        prediction: [B, C, h, w] float32.
        patch_ms: What bringing the row's LoRAs in took; 0 if they were there.
        beside: Whether it had LoRAs beside the weights.
        failures: Row → why its prediction is of no use.
        stale: Which of its ControlNets gave residuals of the previous step.
    """

    prediction: torch.Tensor
    patch_ms: Sequence[float]
    beside: Sequence[bool]
    failures: Mapping[int, RequestError]
    stale: Sequence[Sequence[int]]


class StepTook(NamedTuple):
    """What a step took, as `StepTimes` notes it."""

    work: int
    seconds: float
    control_work: int = 0


class Evaluator:
    """Evaluates calls one by one; for one thread.

    Attributes:
        row_costs: Of rows, beside each other.
    """

    def __init__(
        self, name: str, unet: UNet, loras: ResidentLoras, controlnets: ControlNetCalls, metrics: ShardMetrics
    ) -> None:
        """Puts the parts together.

        Args:
            name: Of the shard.
            unet: Warmed up.
            loras: Over the UNet's patcher.
            controlnets: Wherever they are.
            metrics: The shard's.
        """
        self._name, self._unet, self._loras, self._controlnets = name, unet, loras, controlnets
        self._metrics = metrics
        self._costs, self.row_costs = LoraCosts(), RowCosts(unet.token_costs, unet.scale_factor)
        self._load_plans: LoadPlans | None = None
        if unet.token_costs is not None and unet.stacks is not None:
            self._load_plans = LoadPlans(unet.token_costs, self.row_costs.calls, unet.stacks.blocks)
        self._mixed, self._look_after = 0, LOOK_AFTER[0]
        self._measuring: list[Measured] = []
        self._begun: float | torch.cuda.Event = 0.0
        self._last_step: Measured | None = None
        self._bytes = Counter(*TRANSFERRED)
        self._patch_seconds = Histogram(
            "swiftdiffusion_lora_patch_seconds", "Time to make another LoRA set resident, by shard"
        )

    def measure(self, checkpoint: Checkpoint, patches: bool) -> dict[int, float]:
        """Learns what evaluations cost here, and LoRAs in the weights and beside them, where that is not too slow.

        Args:
            checkpoint: Whose default size is measured.
            patches: Whether there will be LoRAs.

        Returns:
            Rows → seconds.
        """
        seconds: dict[int, float] = {}
        for rows in (MEASURED_ROWS // 2, MEASURED_ROWS):
            tensors = example(checkpoint, rows)
            seconds[rows] = call_seconds(self._unet, tensors)  # the first call of so many rows may set up
            if seconds[rows] > SLOW_S:
                return seconds
            seconds[rows] = call_seconds(self._unet, tensors)
            self._costs.plain.guess(tensors["LATENTS"][:, 0].numel(), seconds[rows])
            self.row_costs.note(self.row_costs.features(tensors["LATENTS"]), seconds[rows])
        if patches:
            self._measure_loras(tensors)
        return seconds

    def _measure_loras(self, tensors: dict[str, torch.Tensor]) -> None:
        beside, patcher = self._unet.beside, self._unet.patcher
        if beside is None or not isinstance(patcher, Patcher):
            return
        nothing, work = zeros(patcher, MEASURED_RANK), tensors["LATENTS"][:, 0].numel()
        sets: list[LoraSet] = [((str(row // 2), 1.0),) for row in range(MEASURED_ROWS)]  # two rows a request
        beside.use(sets, lambda _: nothing)
        call_seconds(self._unet, tensors)  # the first call sets up
        self._costs.note_beside(work, work * MEASURED_RANK, call_seconds(self._unet, tensors))
        beside.use((), lambda _: nothing)
        self._costs.note_swap(time_of(lambda: patcher.apply([(nothing, 1.0)]), self._unet.on_gpu), kept=False)
        patcher.apply([])

    def __call__(self, call: UNetCall) -> Evaluated:
        """Evaluates rows, each with its LoRAs and ControlNets; a set that cannot be had fails its own rows alone.

        Raises:
            RequestError: Where that are all rows: if a LoRA's file is gone, or changes what is constant in engines.
        """
        self._learn()
        self._loras.upload({key for key, _ in call.ahead})
        height, width = call.tensors["LATENTS"].shape[2:]
        parts = self._planned(call.loras, height * width)
        if len(parts) == 1 and parts[0].rows == tuple(range(len(call.loras))):
            return self._part(call, parts[0])
        return _merged([(part.rows, self._tried(call.of(part.rows), part)) for part in parts])

    def _tried(self, call: UNetCall, part: Part) -> Evaluated | RequestError:
        try:
            return self._part(call, part)
        except RequestError as error:
            return error

    def _planned(self, sets: Sequence[LoraSet], pixels: int) -> list[Part]:
        """The cheapest parts; after some calls that sets shared those apart, and after twice as many the next time."""
        looks = self._mixed >= self._look_after
        parts = plan(sets, pixels, self._loras, self._costs, look_again=looks)
        self._mixed = self._mixed + 1 if mixes(parts) else 0
        if not self._mixed:
            self._look_after = min(2 * self._look_after, LOOK_AFTER[1]) if looks else LOOK_AFTER[0]
        return parts

    def _part(self, call: UNetCall, part: Part) -> Evaluated:
        resident, started = self._loras.current, time.perf_counter()
        patch_ms = self._loras.ensure(part.patched)
        if patch_ms:
            self._patch_seconds.observe(patch_ms / 1000, shard=self._name)
        if part.patched != resident:
            self._costs.note_swap(time.perf_counter() - started, kept=not patch_ms)
        started = time.perf_counter()
        self._loras.use_beside(part.beside)
        beside_ms, begun = 1000 * (time.perf_counter() - started), now(self._unet.on_gpu)
        controls = self._controlnets.start(self._of_controlnets(call), call.controls)
        with self._tokens(call) as failures, controls as pending:
            encoded = self._unet.encode(
                call.tensors, (part.patched, part.beside), traced=not call.tokens, halves_alike=call.halves_alike
            )
            halfway_at = time.perf_counter()
            residuals = pending.wait(residual_size(encoded.halfway))
            if pending.wanted:
                self._metrics.waited(time.perf_counter() - halfway_at)
            prediction = self._unet.decode(encoded, residuals.total)
            failures.update(residuals.failures)
        for name, nbytes in pending.sent.items():
            self._bytes.add(nbytes, model=f"controlnet_{name}", direction="to")
        for name, nbytes in residuals.nbytes.items():
            self._bytes.add(nbytes, model=f"controlnet_{name}", direction="from")
        if not any(call.controls):  # else it may have waited for one
            cells = call.tensors["LATENTS"][0, 0].numel()
            ranks = cells * sum(self._loras.rank(each) or 0 for each in part.beside)
            work = 0 if call.tokens else len(part.rows) * cells  # left tokens out, or kept some
            features = None
            if not ranks and (call.tokens or self.row_costs.is_wanted):
                features = self.row_costs.features(call.tensors["LATENTS"], call.tokens)
            self._measuring.append(Measured(work, ranks, begun, now(self._unet.on_gpu), features=features))
        beside = [bool(each) for each in part.beside]
        took = [(beside_ms if is_beside else 0.0) + patch_ms for is_beside in beside]
        return Evaluated(prediction, took, beside, failures, pending.stale)

    def _tokens(self, call: UNetCall) -> AbstractContextManager[dict[int, RequestError]]:
        """What a call of mask-aware runs goes on in."""
        if not call.tokens or self._unet.stacks is None:
            return nullcontext({})
        return token_call(self._unet.stacks, call.tokens, self._load_plans)

    def _of_controlnets(self, call: UNetCall) -> Mapping[str, torch.Tensor]:
        """What ControlNets take of a call: of a UNet that inpaints not the mask, nor the masked picture."""
        latents, channels = call.tensors["LATENTS"], self._unet.latent_channels
        if not any(call.controls) or latents.shape[1] == channels:
            return call.tensors
        return {**call.tensors, "LATENTS": latents[:, :channels].contiguous()}

    def enter_thread(self) -> None:
        """In the thread that will call it, first."""
        self._unet.use_device()

    def begin_step(self) -> None:
        """Before a step."""
        self._begun = now(self._unet.on_gpu)

    def end_step(self, work: int, control_work: int) -> list[StepTook]:
        """After a step: those that have ended.

        A GPU always has a step to go on with: what is waited for here is the end of the one before.
        """
        this = Measured(work, 0, self._begun, now(self._unet.on_gpu), control_work)
        last, self._last_step = self._last_step, this
        if not self._unet.on_gpu:
            last = self._last_step
        if last is None:
            return []
        if isinstance(last.end, torch.cuda.Event):
            last.end.synchronize()
        seconds = last.seconds()
        return [] if seconds is None else [StepTook(last.work, seconds, last.control_work)]

    def _learn(self) -> None:
        """Takes up what evaluations took that have ended: a GPU is still at the last one."""
        while self._measuring and (seconds := self._measuring[0].seconds()) is not None:
            measured = self._measuring.pop(0)
            self.row_costs.note(measured.features, seconds)
            if measured.work and measured.ranks:
                self._costs.note_beside(measured.work, measured.ranks, seconds)
            elif measured.work:
                self._costs.plain.note(measured.work, seconds)


def _merged(parts: Sequence[tuple[Sequence[int], Evaluated | RequestError]]) -> Evaluated:
    """The rows of several evaluations, each by its place; RequestError if none gave any."""
    order = {row: (number, index) for number, (rows, _) in enumerate(parts) for index, row in enumerate(rows)}
    places = [order[row] for row in sorted(order)]
    whole = [each for _, each in parts if isinstance(each, Evaluated)]
    if not whole:
        raise next(each for _, each in parts if isinstance(each, RequestError))
    found = [each if isinstance(each, Evaluated) else _failed(each, len(rows), whole[0]) for rows, each in parts]
    return Evaluated(
        torch.stack([found[number].prediction[index] for number, index in places]),
        [found[number].patch_ms[index] for number, index in places],
        [found[number].beside[index] for number, index in places],
        dict(
            ChainMap(
                *(
                    {rows[index]: error for index, error in each.failures.items()}
                    for (rows, _), each in zip(parts, found, strict=True)
                )
            )
        ),
        [found[number].stale[index] for number, index in places],
    )


def _failed(error: RequestError, rows: int, beside: Evaluated) -> Evaluated:
    """So many rows that were not evaluated, as others of their call were."""
    nothing = beside.prediction.new_zeros(rows, *beside.prediction.shape[1:])
    return Evaluated(nothing, [0.0] * rows, [False] * rows, dict.fromkeys(range(rows), error), [()] * rows)
