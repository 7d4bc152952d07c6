"""Bounded asynchronous loading of one request's LoRAs (SwiftDiffusion, "bounded asynchronous LoRA loading").

Denoising starts without a LoRA that is still loading. It goes on at the first step boundary at which it is ready, and
never later than before step k, its bound: there the request waits, and only this request.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..common.errors import InvalidRequestError, LoraUnavailableError
from ..lora.files.lora_set import NO_LORAS, LoraSet
from .lora_run import LoraRun, set_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from ..lora.loading.tickets import Ticket
    from ..networks.kept_embeddings import Embeddings
    from ..request.completed import LoraUse


class Services(Protocol):
    """What the state below asks of the other models; nothing of it waits."""

    def encode(self, loras: Sequence[LoraRun]) -> Future[Embeddings]:
        """Starts encoding the request's prompts with these patched into the text encoders."""

    def load_again(self, position: int) -> Future[Ticket]:
        """Starts loading the request's LoRA at a position once more: it was lost before its lease."""


class RequestLoras:
    """The LoRAs of one running request.

    Attributes:
        runs: One per LoRA, in the request's order.
        current: The set that the request's next step runs with.
    """

    def __init__(
        self,
        uses: Sequence[LoraUse],
        tickets: Sequence[Ticket],
        services: Services | None,
        encoded: LoraSet = NO_LORAS,
        timeout_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
        uploads_ahead: bool = False,
    ) -> None:
        """Takes up a request's LoRAs.

        Args:
            uses: What the request asks for.
            tickets: `lora_store`'s, one per use.
            services: The other models; None for a request without LoRAs.
            encoded: The set that its prompts are encoded with.
            timeout_s: Longest wait at a bound.
            clock: Seconds.
            uploads_ahead: Whether a LoRA that arrives during the run goes on one step later where its bound allows it,
                so that shards on GPUs upload it while they compute.
        """
        self._uploads_ahead = uploads_ahead
        self.runs = [LoraRun(use, ticket) for use, ticket in zip(uses, tickets, strict=True)]
        self.current: LoraSet = NO_LORAS
        self._services = cast(Services, services)
        self._timeout_s, self._clock = timeout_s, clock
        self._text_set = encoded
        self._encoding: tuple[LoraSet, Future[Embeddings]] | None = None
        self._late: list[LoraRun] = []
        self._asked_at = clock()

    def check_patch_steps(self, steps: int) -> None:
        """Refuses patch steps that a run of so many steps does not have.

        Raises:
            InvalidRequestError: With the step and what is allowed.
        """
        for run in self.runs:
            if run.use.patch_step is not None and run.use.patch_step >= steps:
                raise InvalidRequestError(
                    f"LORA_PATCH_STEP, or patch_step in LORAS, is {run.use.patch_step}; allowed: 0 to {steps - 1}"
                )

    def advance(self, step: int, steps: int) -> tuple[bool, Embeddings | None]:
        """At a step boundary: puts on what is ready.

        Args:
            step: The step that comes next.
            steps: Of the whole run.

        Returns:
            Whether the step may be taken, and new embeddings if the text encoders' part changed.

        Raises:
            RequestError: If a LoRA cannot be loaded, or not within the time.
        """
        if self._encoding is None and all(run.patched_at_step is not None for run in self.runs):
            return True, None
        self._count_waiting()
        ready = [run for run in self.runs if run.patched_at_step is not None or self._is_ready(run, step, steps)]
        embeddings = self._put_on(ready, step)
        self._late = [run for run in self.runs if run.patched_at_step is None and self._is_late(run, step, steps)]
        return not self._late and (step > 0 or self._encoding is None), embeddings

    @property
    def ahead(self) -> LoraSet:
        """The LoRAs that are there and not on yet: what shards may upload."""
        return set_of([run for run in self.runs if run.lease is not None and run.patched_at_step is None])

    def next_change(self, step: int, steps: int) -> int:
        """The step, after one of so many, that another LoRA is on in at the latest; `steps` where none will be."""
        coming = (run.latest_step(steps) for run in self.runs if run.patched_at_step is None)
        return min((each for each in coming if each > step), default=steps)

    def close(self) -> None:
        """At the request's end: gives the files up."""
        for run in self.runs:
            run.close()

    def note_patch(self, step: int, milliseconds: float) -> None:
        """Reports what a shard took to make the set resident for a step."""
        for run in self.runs:
            if run.patched_at_step == step:
                run.patch_ms = max(run.patch_ms, milliseconds)

    def report(self) -> list[dict[str, Any]]:
        """INFO's `loras`."""
        return [run.report() for run in self.runs]

    def _is_ready(self, run: LoraRun, step: int, steps: int) -> bool:
        """Whether a LoRA may go on: loaded, leased, wanted by now, and uploaded if there is time for that."""
        if run.lease is None:
            run.take_lease(lambda: self._services.load_again(self.runs.index(run)))
            run.leased_at_step = step
        has_time = self._uploads_ahead and 0 < step < run.latest_step(steps)
        return run.lease is not None and run.may_start(step) and not (has_time and run.leased_at_step == step)

    def _is_late(self, run: LoraRun, step: int, steps: int) -> bool:
        """Whether the next step waits: at the bound, and at step 0 for what is there but for its encoding."""
        there = step == 0 and run.lease is not None and run.may_start(step)
        return there or step >= run.latest_step(steps)

    def _put_on(self, ready: list[LoraRun], step: int) -> Embeddings | None:
        """Makes the ready LoRAs the current set, once the prompt is encoded with their text encoders' parts.

        And with no others: what the prompt was encoded with may have gone before step 0.
        """
        embeddings = self._embeddings_with([run for run in ready if run.adapts_text])
        for run in ready:
            if run.patched_at_step is None and (self._encoding is None or not run.adapts_text):
                run.patched_at_step = step
        self.current = set_of([run for run in self.runs if run.patched_at_step is not None])
        return embeddings

    def _embeddings_with(self, of_text: list[LoraRun]) -> Embeddings | None:
        """The prompt's, encoded with these; None if it is already, and while that is being done."""
        wanted = set_of(of_text)
        if wanted == self._text_set:
            self._encoding = None
            return None
        if self._encoding is None or self._encoding[0] != wanted:
            self._encoding = wanted, self._services.encode(of_text)
        if not self._encoding[1].done():
            return None
        embeddings, self._text_set, self._encoding = self._encoding[1].result(), wanted, None
        return embeddings

    def _count_waiting(self) -> None:
        """Adds the time since the last step boundary to what was waited for there.

        Raises:
            LoraUnavailableError: If it is too long.
        """
        now = self._clock()
        for run in self._late:
            run.waited_ms += 1000 * (now - self._asked_at)
            if run.waited_ms > 1000 * self._timeout_s:
                raise LoraUnavailableError(f'LORAS names "{run.use.name}", not loaded within {self._timeout_s:g} s')
        self._asked_at = now
