"""Mask-aware runs of requests that come to a shard, and those of others that leave what they compute."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..networks.digests import tensors_digest
from ..networks.token_masks import token_mask
from .entry_loads import EntryLoads
from .run_template import RunTemplate
from .template_listing import OF_A_NAME
from .template_store import Place
from .template_writer import TemplateWriter
from .token_memory import TokenMemory
from .token_runs import TokenRun

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..networks.token_masks import Side
    from ..request.completed import CompletedRequest
    from .starts import Start
    from .template_store import TemplateStore

CPU = torch.device("cpu")
KINDS = "unconditional", "conditional"
REACH = 1 / 18
"""Of the schedule: an entry serves the steps beside its own of a run of 20."""

SHARE = 0.25
"""Of the room: what waits to be written, and likewise what came to a GPU."""

BLANK = "blank"
"""A prompt without words: its entries are of no use for one with words."""


@dataclass(frozen=True)
class Transformers:
    """A UNet's, as mask-aware runs know them.

    Attributes:
        levels: `TokenStacks.levels`.
        widths: `TokenStacks.widths`.
        digest: Of all of the network's weights, and of the noise schedule.
        train_timesteps: Of the noise schedule.
        server: Names the process that is the server: no other one is called so, nor was.
        value_bytes: Of each value that a block gives.
    """

    levels: Sequence[int]
    widths: Sequence[int]
    digest: str
    train_timesteps: int
    server: str = ""
    value_bytes: int = 4

    def shapes(self, sides: Sequence[Side]) -> list[tuple[int, int]]:
        """(tokens, width) of each block, of latents with these sides by level."""
        tokens = [height * width for height, width in sides]
        return [(tokens[level], width) for level, width in zip(self.levels, self.widths, strict=True)]


class TokenRuns:
    """Makes those of one shard, which share its room.

    Attributes:
        memory: What they may keep of their own.
        writer: Of entries; None where none are kept.
        loads: Where there is a writer, what it wrote comes back by these.
    """

    def __init__(
        self,
        transformers: Transformers | None,
        most_bytes: int,
        store: TemplateStore | None = None,
        device: torch.device = CPU,
        count: Callable[[str, float], None] = lambda _what, _amount: None,
    ) -> None:
        """None yet.

        Args:
            transformers: The UNet's; None for a runtime that masks nothing.
            most_bytes: That they may keep, with what is to be written and what has come.
            store: Of entries; None for none.
            device: Where the UNet is.
            count: See `TemplateWriter`.
        """
        self._transformers, self._device = transformers, device
        self.memory = TokenMemory(most_bytes - 2 * int(SHARE * most_bytes))
        self.writer: TemplateWriter | None = None
        if store is not None and transformers is not None:
            self.writer = TemplateWriter(store, TokenMemory(int(SHARE * most_bytes)), count)
            self.loads = EntryLoads(
                store, device, int(SHARE * most_bytes), loaded=self.writer.bring_near, waited=partial(count, "waited_s")
            )

    def make(self, request: CompletedRequest, start: Start, timesteps: Sequence[float]) -> TokenRun | None:
        """That of a request whose steps have these timesteps; None for one whose tokens nobody wants."""
        edit, known = request.edit, self._transformers
        if edit is None or start.mask is None:
            return None
        seen = self._is_known(request, start)
        if edit.mask_aware is None and not seen:
            return None
        cells = start.mask[0, 0]
        levels = None if known is None else known.levels
        mask = token_mask(cells, 1 + max(levels or (0,)))
        template = None
        if known is not None and self.writer is not None and start.masked is None:
            kinds = KINDS if request.prompt.strip() else (KINDS[0], BLANK)
            template = RunTemplate(
                self.writer,
                self.loads,
                [Place(known.digest, edit.picture, kind, known.server) for kind in kinds],
                (cells, tensors_digest(cells > 0)[:OF_A_NAME], mask),
                timesteps,
                REACH * known.train_timesteps,
                known.shapes(mask.sides),
                known.value_bytes,
                writes=seen,
            )
        return TokenRun(mask.to(self._device), edit.mask_aware, len(timesteps), self.memory, levels, template)

    def _is_known(self, request: CompletedRequest, start: Start) -> bool:
        """Whether a mask-aware request came with the picture before this one; noted if this is one."""
        edit = request.edit
        if edit is None or self.writer is None or start.masked is not None:
            return False
        store = self.writer.store
        return store.was_seen(edit.picture) if edit.mask_aware is None else store.see(edit.picture)
