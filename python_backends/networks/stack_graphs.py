"""A transformer stack of a UNet over some rows of a call, as CUDA graphs.

Graphs differ in how many rows there are, how many of their tokens are masked, and whether what blocks give is kept.
What rows take lies in memory that all stacks use in turn: none has any for itself, whatever graphs it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from cachetools import LRUCache

from .cuda_graphs import CudaGraphs
from .stack_modules import over_all, over_masked

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    from ..lora.patching.beside import BesideLoras
    from .cuda_graphs import CaptureSite
    from .prompt_projections import PromptProjections
    from .scratch import Scratch
    from .stack_modules import Keep, Known

META = torch.device("meta")
SHAPES = 24
"""Of what a stack takes, whose places in memory are remembered."""


class StackGraphs:
    """Calls a stack as `StackModules` does; what it gives, the next call of any stack overwrites."""

    def __init__(
        self,
        stack: Transformer2DModel,
        site: CaptureSite,
        scratch: Scratch,
        projections: PromptProjections,
        beside: BesideLoras,
    ) -> None:
        """Captures nothing yet.

        Args:
            stack: The module.
            site: Of all stacks, and of nothing else: other graphs go on between them.
            scratch: Of all stacks.
            projections: Of prompts.
            beside: LoRAs beside the weights.
        """
        self._stack, self._scratch, self._projections, self._beside = stack, scratch, projections, beside
        self._all, self._masked = (
            CudaGraphs(call, site, slice(None), lambda: beside.variant, at_second_sight=True)
            for call in (self._call_all, self._call_masked)
        )
        self._taken: LRUCache[tuple[object, ...], list[torch.Tensor]] = LRUCache(SHAPES)
        self._memory = scratch.memory

    def over_all(
        self, rows: slice, hidden_states: torch.Tensor, prompts: torch.Tensor, keep: Keep | None
    ) -> torch.Tensor:
        """`over_all` of some rows of a call."""
        given = self._given(rows, hidden_states, prompts)
        own, kept = self._copied(given, keeps=keep is not None)
        out: torch.Tensor = self._all(*own, *kept)
        if keep is not None:
            for number, tokens in enumerate(kept):
                keep(number, tokens)
        return out

    def over_masked(
        self, rows: slice, hidden_states: torch.Tensor, prompts: torch.Tensor, places: torch.Tensor, known: Known
    ) -> torch.Tensor:
        """`over_masked` of some rows of a call."""
        own, tokens = self._copied((*self._given(rows, hidden_states, prompts), places), keeps=True)
        for number, each in enumerate(tokens):
            known(number, each)
        out: torch.Tensor = self._masked(*own, *tokens)
        return out

    def _call_all(self, *tensors: torch.Tensor) -> torch.Tensor:
        hidden_states, prompts, slots, out, *kept = tensors

        def keep(number: int, tokens: torch.Tensor) -> None:
            kept[number].copy_(tokens)

        with self._beside.by(slots):
            return out.copy_(over_all(self._stack, hidden_states, prompts, keep if kept else None))

    def _call_masked(self, *tensors: torch.Tensor) -> torch.Tensor:
        hidden_states, prompts, slots, places, out, *known = tensors
        with self._beside.by(slots):
            return out.copy_(over_masked(self._stack, hidden_states, prompts, places, lambda number, _: known[number]))

    def _given(self, rows: slice, hidden_states: torch.Tensor, prompts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return hidden_states[rows], self._projections.of(self._stack, prompts)[rows], self._beside.slots[rows]

    def _copied(self, given: tuple[torch.Tensor, ...], *, keeps: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Copies of these, and room for what the stack gives; then room for what each block gives, if it is wanted."""
        key = given[0].stride(), *(each.shape for each in given), keeps
        taken = self._taken.get(key) if self._memory is self._scratch.memory else None
        if taken is None:
            taken = self._scratch.take(self._kinds(given, keeps=keeps))
            if self._memory is not self._scratch.memory:  # it grew: graphs have it where it was
                self._memory = self._scratch.memory
                self._taken.clear()
                self._all.forget()
                self._masked.forget()
            self._taken[key] = taken
        for own, each in zip(taken, given, strict=False):
            own.copy_(each)
        return taken[: len(given) + 1], taken[len(given) + 1 :]

    def _kinds(self, given: tuple[torch.Tensor, ...], *, keeps: bool) -> list[torch.Tensor]:
        hidden_states, stack = given[0], self._stack
        rows, _channels, height, width = hidden_states.shape
        blocks = len(stack.transformer_blocks) if keeps else 0
        widths = ([stack.inner_dim] * (blocks - 1) + [stack.out_channels])[:blocks]
        kept = [hidden_states.new_empty(rows, height * width, each, device=META) for each in widths]
        return [*(torch.empty_like(each, device=META) for each in (*given, hidden_states)), *kept]
