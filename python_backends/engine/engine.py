"""The engine of a shard: a thread that runs whole requests, while the model's `execute` only carries messages.

The thread owns the runs. Messages reach it as jobs in its inbox, and what others may know of a run is published after
every step; no call between models is held.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import torch

from ..backend.responses import as_request_error
from ..common.pulse import ENGINE
from .messages import Polled
from .places import Places
from .published import Published, state_of
from .stepping import Stepping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..common.pulse import Pulse
    from .desk import Desk
    from .evaluator import Evaluated, Evaluator, StepTook
    from .messages import Claim, Claimed, Quoted
    from .peers import Peers
    from .run import Denoising
    from .shard_metrics import ShardMetrics
    from .step_times import StepTimes
    from .unet_calls import UNetCall
    from .work import Work

WAITING_POLL_S = 0.003
"""Pause between looks for LoRAs where every run waits for one."""

CLAIMS_POLL_S = 0.25
"""The same where nobody is in line but claims, which expire."""

FIRST_S, HANGS_S, HANGS_STEPS = 600.0, 60.0, 20.0
"""An engine hangs that takes longer: for a step of a kind that was never measured, which may set up; for others, where
LoRAs may, beside so many times what they take."""

LENT_S, LENT_STEPS = 0.5, 3.0
"""Another shard that has sent no rows for so long, and for so many times what they took, has to ask again."""


class Engine:
    """Runs requests from noise to final latents, in batches that form anew at every step."""

    def __init__(
        self,
        name: str,
        evaluator: Evaluator,
        peers: Peers,
        desk: Desk,
        times: StepTimes,
        count: Callable[[Denoising], None],
        pulse: Pulse,
        metrics: ShardMetrics,
        controlnet_timeout_s: float = 0.0,
        weighed: Callable[[Work], Work] | None = None,
    ) -> None:
        """Starts the thread.

        Args:
            name: Of the shard.
            evaluator: Its UNet.
            peers: The other shards.
            desk: An empty line.
            times: The desk's.
            count: Told of every run that has ended.
            pulse: Of this process.
            metrics: The shard's.
            controlnet_timeout_s: What a step may wait for ControlNets.
            weighed: See `Places`; None: as the evaluator says.
        """
        self._weighed = weighed or evaluator.row_costs.weighed
        self._controlnet_timeout_s, self._pulse = controlnet_timeout_s, pulse
        self._evaluator, self._desk, self._times, self._count = evaluator, desk, times, count
        self._step = Stepping(name, evaluator, peers)
        self._metrics = metrics
        self._places = Places(desk, len(peers), self._weighed)
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._mutex = threading.Lock()  # of the desk
        self._runs: dict[str, Denoising] = {}
        self._published = Published()
        self._active: set[str] = set()
        self._claimed = False
        self._lent: tuple[str, float] | None = None
        self._boundary, self._step_s, self._measured_at = 0.0, 0.0, time.monotonic()
        self._closing = False
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._thread.start()

    # Messages, from the thread of the model's `execute`.

    def submit(self, run: Denoising, again: bool, sender: int) -> None:
        """Takes up a run; `again`, one that ran elsewhere before; `sender` is the process that asks after it."""
        self._active.add(run.request.run_id)
        self._published.begin(run.request.run_id, run.steps, sender)
        self._inbox.put(partial(self._enter, run, again))

    def poll(self, runs: Sequence[str]) -> tuple[Polled, list[torch.Tensor]]:
        """States, and the latents of those that are done; what has ended is forgotten with this."""
        states, latents = self._published.fetch(runs)
        return Polled(states, max(0.0, self._boundary - time.monotonic()), self._step_s), latents

    def forget(self, runs: Iterable[str]) -> None:
        """Gives runs up, wherever they are."""
        for run in runs:
            self._inbox.put(partial(self._leave, run))

    def quote(self, work: Work) -> Quoted:
        """When such a run would be done."""
        with self._mutex:
            return self._places.quote(work)

    def claim(self, asked: Claim) -> Claimed:
        """A place for such a run, if it would be done in time."""
        with self._mutex:
            claimed = self._places.claim(asked, time.monotonic() - self._measured_at)
        if claimed.id is not None:
            self._inbox.put(lambda: None)  # who waits is counted
        return claimed

    def lend(self, home: str, seconds: float = LENT_S) -> bool:
        """Whether this shard evaluates for another one, for so long: if it has nothing to do."""
        now = time.monotonic()
        if self._active or (self._lent is not None and self._lent[0] != home and now < self._lent[1]):
            return False
        self._lent = home, now + seconds
        return True

    def evaluate(self, home: str, call: UNetCall) -> Evaluated | None:
        """Evaluates rows of another shard; None if this one is not lent to it. The next ones are due in a step."""
        if not self.lend(home):
            return None
        started = time.monotonic()
        answer: Future[Evaluated] = Future()

        def job() -> None:
            try:
                self._evaluator.begin_step()
                self._pulse.until(self._hangs_after_s(call.work, call.control_work), ENGINE)
                evaluated = self._evaluator(call)
                self._learn(self._evaluator.end_step(call.work, call.control_work))
                self._metrics.worked(time.monotonic() - started)
            except Exception as error:  # noqa: BLE001  raised where it is waited for
                answer.set_exception(error)
            else:
                answer.set_result(evaluated)

        self._inbox.put(job)
        evaluated = answer.result()
        self.lend(home, max(LENT_S, LENT_STEPS * (time.monotonic() - started)))
        return evaluated

    def close(self) -> None:
        """Ends the thread after its step."""
        self._closing = True
        self._inbox.put(lambda: None)
        self._thread.join()

    # The thread.

    def _live(self) -> None:
        """A process whose engine has ended is of no use: without one, it is loaded again."""
        try:
            self._loop()
        except BaseException:  # noqa: BLE001  whatever it is, there is no engine any more
            traceback.print_exc()
            os._exit(os.EX_SOFTWARE)

    @torch.no_grad()
    def _loop(self) -> None:
        self._evaluator.enter_thread()
        batch: list[Denoising] = []
        while not self._closing:
            jobs = self._messages(wait=not batch)
            with self._pulse.within(FIRST_S, ENGINE):
                for job in jobs:
                    job()
                batch = self._at_boundary()
                try:
                    if batch:
                        self._advance(batch)
                except Exception as error:  # noqa: BLE001  the thread goes on, with other runs
                    failure = as_request_error(error, "denoising")
                    for run in batch:
                        if run.request.run_id in self._runs:
                            run.failure = run.failure or failure
                            self._publish(run)

    def _messages(self, wait: bool) -> list[Callable[[], None]]:
        """What came in meanwhile; with nothing to do waits for it, with LoRAs on their way for a moment."""
        jobs: list[Callable[[], None]] = []
        try:
            if wait:
                idle_s = CLAIMS_POLL_S if self._claimed else None
                jobs.append(self._inbox.get(timeout=WAITING_POLL_S if self._runs else idle_s))
            while True:
                jobs.append(self._inbox.get_nowait())
        except Empty:
            return jobs

    def _at_boundary(self) -> list[Denoising]:
        """LoRAs go on, and who has nobody any more leaves; the runs that take the next step."""
        for run_id in self._published.abandoned():
            self._leave(run_id)
        for run in list(self._runs.values()):
            try:
                run.put_on_loras()
            except Exception as error:  # noqa: BLE001  whatever one request brings must not end the others
                run.failure = as_request_error(error, "denoising")
                self._publish(run)
        with self._mutex:
            batch = self._desk.batch({run_id for run_id, run in self._runs.items() if not run.waiting})
            waiting, running = self._desk.counts
        self._claimed = waiting + running > 0
        self._metrics.line(waiting, running)
        return [self._runs[run_id] for run_id in batch]

    def _advance(self, batch: list[Denoising]) -> None:
        """One step of the batch."""
        started = time.monotonic()
        for run in batch:
            run.report.note_begin(started)

        def announce(work: int, control_work: int) -> None:
            self._boundary = started + self._times.expected(work, control_work)
            self._pulse.until(self._hangs_after_s(work, control_work), ENGINE)

        before = {run.request.run_id: run.step for run in batch}
        ended = self._step(batch, announce)
        self._step_s = time.monotonic() - started
        self._metrics.stepped(len(batch), sum(len(run.halves) for run in batch), self._step_s)
        self._learn(ended)
        with self._mutex:
            self._desk.stepped(run.request.run_id for run in batch if run.step > before[run.request.run_id])
        for run in batch:
            self._publish(run)

    def _hangs_after_s(self, work: int, control_work: int) -> float:
        if not self._times.knows(work, control_work):
            return FIRST_S
        waits_s = self._controlnet_timeout_s if control_work else 0.0
        return HANGS_S + waits_s + HANGS_STEPS * self._times.expected(work, control_work)

    def _learn(self, ended: Iterable[StepTook]) -> None:
        """What steps took, and evaluations for others: a shard that seems slow might get nothing else to learn from."""
        with self._mutex:
            for took in ended:
                if took.work > 0:
                    self._times.note(*took)
                    self._measured_at = time.monotonic()

    def _enter(self, run: Denoising, again: bool) -> None:
        self._runs[run.request.run_id] = run
        claim_id = run.request.claim.id if run.request.claim else None
        with self._mutex:
            self._desk.enter(run.request.run_id, self._weighed(run.work), claim_id, again)

    def _publish(self, run: Denoising) -> None:
        """Says how far a run is; one that is done, or has failed, takes no further step."""
        run_id = run.request.run_id
        previews = run.request.previews
        if previews is not None and previews.shows(run.step) and not run.done and run.failure is None:
            try:
                self._published.show(run_id, run.step, run.sampler.predicted().cpu())
            except Exception as error:  # noqa: BLE001  whatever one request brings must not end the others
                run.failure = as_request_error(error, "previewing")
        state, latents = state_of(run)
        if state.ended:
            self._end(run_id)
        self._published.put(run_id, state, latents)

    def _end(self, run_id: str) -> None:
        self._active.discard(run_id)
        with self._mutex:
            self._desk.leave(run_id)  # a run, or a claim that is given back
        run = self._runs.pop(run_id, None)
        if run is not None:
            try:
                run.close()
                self._count(run)
            except Exception as error:  # noqa: BLE001  it has ended all the same
                as_request_error(error, "ending a run")

    def _leave(self, run_id: str) -> None:
        """Forgets a run, whether it has ended or not."""
        self._end(run_id)
        self._published.forget(run_id)
