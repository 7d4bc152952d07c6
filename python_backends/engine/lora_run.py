"""One LoRA of one request, on its way from a ticket to a lease on its file."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..common.errors import LoraUnavailableError
from ..lora.files.canonical import adapted_modules, notes_of
from ..lora.files.lora_set import LoraSet, make_set
from ..lora.files.modules import UNET
from ..shared_memory.host_cache import EvictedError, Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Future

    from ..lora.loading.outcomes import LoadedLora
    from ..lora.loading.tickets import Ticket
    from ..request.completed import LoraUse

MAX_RELOADS = 2
"""A LoRA that is lost more often ends its request."""


@dataclass
class LoraRun:
    """One LoRA of one request.

    Attributes:
        use: What the request asks for.
        ticket: Where it is, or will be.
        reload: A ticket on its way in place of that one.
        reloads: How many there were.
        loaded: The LoRA once it is ready and leased.
        lease: Keeps its file in the host cache.
        leased_at_step: The step before which it got it.
        adapts_text: Whether it has parts for the text encoders.
        patched_at_step: The first step that ran with it.
        patch_ms: The longest that a shard took to make it resident with its set, at that step.
        modules: Number of modules that it adapts.
        notes: What was assumed about its file, or left out of it: sentences.
        waited_ms: How long the request waited for it at its bound.
    """

    use: LoraUse
    ticket: Ticket
    reload: Future[Ticket] | None = None
    reloads: int = 0
    loaded: LoadedLora | None = None
    lease: Lease | None = None
    leased_at_step: int | None = None
    adapts_text: bool = False
    patched_at_step: int | None = None
    patch_ms: float = 0.0
    modules: int = 0
    notes: list[str] = field(default_factory=list)
    waited_ms: float = 0.0

    def latest_step(self, steps: int) -> int:
        """The step that is not taken without it."""
        step = self.use.bound if self.use.patch_step is None else self.use.patch_step
        return min(step, steps - 1)

    def may_start(self, step: int) -> bool:
        """Whether it may go on before this step."""
        return self.use.patch_step is None or step >= self.use.patch_step

    def take_lease(self, load_again: Callable[[], Future[Ticket]]) -> None:
        """Leases the file, if it is there by now.

        Args:
            load_again: Starts loading it once more, where it was lost before its lease.

        Raises:
            RequestError: If it cannot be loaded, or was lost too often.
        """
        if self.reload is not None:
            if not self.reload.done():
                return
            self.ticket, self.reload = self.reload.result(), None
        loaded = self.ticket.poll()
        if loaded is None:
            if self.ticket.lost:
                self._load_again(load_again, "the process that was loading it died")
            return
        try:
            self.lease = Lease(loaded.path)
        except EvictedError:
            self._load_again(load_again, "other LoRAs took its place before it could be used")
            return
        modules, self.notes = adapted_modules(loaded.path), notes_of(loaded.path)
        self.loaded, self.modules = loaded, sum(modules.values())
        self.adapts_text = _adapt_text(modules)

    def _load_again(self, load_again: Callable[[], Future[Ticket]], reason: str) -> None:
        if self.reloads == MAX_RELOADS:
            raise LoraUnavailableError(f'LORAS names "{self.use.name}": {reason}, {1 + MAX_RELOADS} times')
        self.reloads += 1
        self.reload = load_again()

    def close(self) -> None:
        """At the request's end: gives the file up."""
        if self.lease is not None:
            self.lease.close()
        elif self.loaded is None:
            self.ticket.discard()

    def report(self) -> dict[str, Any]:
        """Its entry of INFO's `loras`; times in milliseconds. Source `gpu`: resident in every shard that needed it."""
        return {
            "name": self.use.name,
            "scale": self.use.scale,
            "patched_at_step": self.patched_at_step,
            "bound": self.use.bound,
            "source": self._source(),
            "load_ms": None if self.loaded is None else round(self.loaded.load_ms, 3),
            "patch_ms": round(self.patch_ms, 3),
            "waited_ms": round(self.waited_ms, 3),
            "modules": self.modules,
            "notes": self.notes,
        }

    def _source(self) -> str | None:
        if self.loaded is None:
            return None
        return "gpu" if self.loaded.source == "host" and self.patch_ms == 0 else self.loaded.source


def set_of(runs: Sequence[LoraRun]) -> LoraSet:
    """The set of those that are loaded."""
    return make_set((run.loaded.path, run.use.scale) for run in runs if run.loaded is not None)


def text_set(uses: Sequence[LoraUse], tickets: Sequence[Ticket]) -> LoraSet:
    """Of a request's LoRAs that are at hand, those that its prompts are encoded with from the first step on."""
    found = []
    for use, ticket in zip(uses, tickets, strict=True):
        if ticket.at_hand is not None and not use.patch_step:
            with suppress(FileNotFoundError):  # others took its place since
                if _adapt_text(adapted_modules(ticket.at_hand.path)):
                    found.append((ticket.at_hand.path, use.scale))
    return make_set(found)


def _adapt_text(modules: Iterable[str]) -> bool:
    return any(component != UNET for component in modules)
