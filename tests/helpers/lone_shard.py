"""An engine without a server: real runs, desk and thread, with a function in the place of the network."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import model_process  # noqa: F401  before what imports the server's module
import torch

from swiftdiffusion.python_backends.common.errors import RequestError
from swiftdiffusion.python_backends.common.pulse import Pulse, Seen, seen
from swiftdiffusion.python_backends.engine.desk import Desk
from swiftdiffusion.python_backends.engine.engine import Engine
from swiftdiffusion.python_backends.engine.evaluator import Evaluated, StepTook
from swiftdiffusion.python_backends.engine.messages import Claim, Claimed, RunState
from swiftdiffusion.python_backends.engine.peers import Peers
from swiftdiffusion.python_backends.engine.row_costs import RowCosts
from swiftdiffusion.python_backends.engine.run import Denoising, LatentGeometry
from swiftdiffusion.python_backends.engine.shard_metrics import ShardMetrics
from swiftdiffusion.python_backends.engine.step_times import StepTimes
from swiftdiffusion.python_backends.engine.unet_calls import UNetCall, unet_calls
from swiftdiffusion.python_backends.engine.work import Work
from swiftdiffusion.python_backends.request.completed import CompletedRequest, ControlNetUse, PlaceClaim

CONFIG = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"}
EMBEDDINGS = torch.stack([torch.zeros(3, 8), torch.ones(3, 8)]), None
SIDE = 4
PIXELS = SIDE * SIDE
TEN = Work(2, PIXELS, 10)


def make_run(
    run_id: str,
    steps: int = 4,
    *,
    guidance: float = 5.0,
    width: int = SIDE,
    scheduler: str = "euler",
    claim_id: str | None = None,
    controlnets: int = 0,
    guess_mode: bool = False,
) -> Denoising:
    """A run of a tiny picture, at step 0."""
    claim = None if claim_id is None else PlaceClaim("shard", claim_id, 0.0, 0.0)
    seed = sum(run_id.encode())
    uses = (ControlNetUse("edges", ("0" * 64,), 1.0, 0.0, 1.0, guess_mode),) * controlnets
    request = CompletedRequest(
        run_id, "", None, seed, steps, guidance, SIDE, width, scheduler, claim=claim, controlnets=uses
    )
    return Denoising(request, CONFIG, LatentGeometry(4, 1), EMBEDDINGS)


def predicted(call: UNetCall) -> torch.Tensor:
    """Row by row, so that a prediction does not depend on who shares the call."""
    of_half = call.tensors["ENCODER_HIDDEN_STATES"].mean((1, 2))
    rows = zip(call.tensors["LATENTS"], call.tensors["TIMESTEPS"], of_half, strict=True)
    return torch.stack([torch.tanh(latents + half) + torch.sin(timestep) for latents, timestep, half in rows])


def alone(run: Denoising) -> torch.Tensor:
    """Its final latents by its sampler, with no engine."""
    while not run.done:
        given = {run: run.model_input()}
        run.advance({half: predicted(unet_calls([(run, half)], given)[0]) for half in run.halves})
    return run.latents


def equal(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> bool:
    """Latents, to the bit."""
    return all(torch.equal(*each) for each in zip(found, expected, strict=True))


class Network:
    """In the place of an evaluator.

    Attributes:
        calls: Those that have begun.
        seconds: That a step is said to take.
        held: While somebody holds it, no call ends.
        failing: Width of pictures → what evaluating them raises.
        failing_runs: Run → why predictions for it are of no use.
        failing_step: What the end of the next step raises.
    """

    def __init__(self) -> None:
        self.calls: list[UNetCall] = []
        self.row_costs = RowCosts(None)
        self.seconds = 0.001
        self.held = threading.Lock()
        self.failing: dict[int, Exception] = {}
        self.failing_runs: dict[Denoising, RequestError] = {}
        self.failing_step: Exception | None = None

    def __call__(self, call: UNetCall) -> Evaluated:
        self.calls.append(call)
        with self.held:
            pass
        latents = call.tensors["LATENTS"]
        if latents.shape[-1] in self.failing:
            raise self.failing[latents.shape[-1]]
        rows = len(latents)
        failures = {row: self.failing_runs[run] for row, (run, _) in enumerate(call.rows) if run in self.failing_runs}
        return Evaluated(predicted(call), [0.0] * rows, [False] * rows, failures, [()] * rows)

    def enter_thread(self) -> None:
        """Nothing to do."""

    def begin_step(self) -> None:
        """Nothing to do."""

    def end_step(self, work: int, control_work: int) -> list[StepTook]:
        """As an evaluator's."""
        error, self.failing_step = self.failing_step, None
        if error is not None:
            raise error
        return [StepTook(work, self.seconds, control_work)]

    def begin(self) -> None:
        """Waits until a call has begun."""
        until(lambda: bool(self.calls))


class LoneShard:
    """An engine over a stand-in network, on a desk whose clock stands still.

    Attributes:
        network: What it has in the place of an evaluator.
        engine: The engine.
        counted: The runs that have ended.
    """

    def __init__(self, name: str = "shard", places: int = 4, peers: Any = None) -> None:
        self.network, self.times, self.counted = Network(), StepTimes(), list[Any]()
        self.name, self.runtime = name, Path(tempfile.mkdtemp())
        self.engine = Engine(
            name,
            cast("Any", self.network),
            peers or Peers(name, []),
            Desk(places, self.times, clock=lambda: 0.0),
            self.times,
            self.counted.append,
            self._pulse(),
            ShardMetrics("tiny", name, f"{name}_0_0"),
        )

    def _pulse(self) -> Pulse:
        pulse = Pulse(self.name, "0", self.runtime)
        pulse.ready()
        return pulse

    @property
    def seen(self) -> Seen:
        """What its pulse shows."""
        return seen(self.name, self.runtime)[0]

    def submit(self, *runs: Denoising, sender: int | None = None) -> None:
        """Runs of requests that were nowhere else; None: this process asks after them."""
        for run in runs:
            self.engine.submit(run, again=False, sender=sender or os.getpid())

    def submit_together(self, *runs: Denoising) -> None:
        """They share steps; the first may take one by itself before."""
        with self.network.held:
            self.submit(*runs)

    def state(self, run: Denoising) -> RunState | None:
        """What is told of a run."""
        return self.engine.poll([run.request.run_id])[0].runs[run.request.run_id]

    def ends(self, *runs: Denoising) -> list[tuple[RunState, torch.Tensor | None]]:
        """What is told of runs when they have ended, and final latents."""
        found: dict[str, tuple[RunState, torch.Tensor | None]] = {}
        names = [run.request.run_id for run in runs]

        def look() -> bool:
            polled, latents = self.engine.poll([name for name in names if name not in found])
            rest = iter(latents)
            for name, state in polled.runs.items():
                assert state is not None
                if state.ended:
                    found[name] = state, None if state.info is None else next(rest)
            return len(found) == len(names)

        until(look)
        return [found[name] for name in names]

    def done(self, *runs: Denoising) -> list[torch.Tensor]:
        """Final latents of runs, which have to end with them."""
        latents = []
        for state, each in self.ends(*runs):
            assert state.error is None
            assert each is not None
            latents.append(each)
        return latents

    def errors(self, *runs: Denoising) -> list[dict[str, str]]:
        """Of runs, which have to end so."""
        reports = [state.error for state, _ in self.ends(*runs)]
        return [dict(report) for report in reports if report is not None]

    def claim(self, limit_s: float | None, helpers: int = 0) -> Claimed:
        """For a run of `TEN`."""
        return self.engine.claim(Claim(TEN, limit_s, limit_s, 5.0, helpers, 0.0))

    def learn(self) -> None:
        """A step takes a second for every row."""
        for rows in (1, 2, 4):
            self.times.note(rows * PIXELS, float(rows))


class Lender:
    """The one other shard, in the place of `Peers`: asked with no server between."""

    def __init__(self, shard: LoneShard) -> None:
        self.name, self._engine, self._threads = "lender", shard.engine, ThreadPoolExecutor(1)

    def __len__(self) -> int:
        return 1

    def lent(self, most: int) -> list[Lender]:
        """As `Peers.lent`, of a shard that has lent itself."""
        return [self][:most]

    def submit(self, peer: Lender, call: UNetCall) -> Future[Evaluated | None]:
        """As `Peers.submit`."""
        return self._threads.submit(self._engine.evaluate, "shard", call)


def until(come_true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for something, not for ever."""
    deadline = time.monotonic() + seconds
    while not come_true():
        assert time.monotonic() < deadline
        time.sleep(0.001)
