"""A module's calls as CUDA graphs: one launch where there would be a thousand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

GRAPHS = 24
"""Shapes that are kept, with LoRAs beside the weights and without. Whole requests bring two rows each: a batch of eight
has 1, 2, 4, 6 … 16 rows. Any other shape costs three calls."""

WARM_UP_CALLS = 2
"""Before a capture: what is set up or compiled at the first call must not be captured."""


@dataclass(frozen=True)
class CaptureSite:
    """What graphs that never run at the same time share.

    Attributes:
        pool: Where their memory comes from.
        stream: Where they are warmed up and captured; cuBLAS keeps a workspace for each such stream.
    """

    pool: Any
    stream: torch.cuda.Stream


_Shapes = tuple[torch.Size, ...]


class CudaGraphs:
    """Calls of a module, captured for each tuple of input shapes and each variant, and replayed ever after.

    Parameters are not copied: patching them in place, on the same stream, takes effect. Graphs of one site must not run
    at the same time, and of each the outputs hold until its next call.
    """

    def __init__(
        self,
        module: Callable[..., Any],
        site: CaptureSite,
        adopts: bool = False,
        variant: Callable[[], Hashable] = lambda: None,
    ) -> None:
        """Captures nothing yet.

        Args:
            module: Takes tensors and gives a tensor or a tuple of them. Its work depends on their shapes and on nothing
                else but the variant.
            site: Shared with the graphs that run before and after.
            adopts: Whether the first inputs of a shape become the graph's own: those that come back are then not
                copied, and later calls overwrite them. For what another graph gives.
            variant: Of the module's work now.
        """
        self._module, self._site, self._adopts = module, site, adopts
        self._variant = variant
        self._captured: LRUCache[tuple[_Shapes, Hashable], _Captured] = LRUCache(GRAPHS)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """What the module gives, in memory that its next call overwrites.

        Args:
            *inputs: On the module's device.
        """
        shapes = tuple(tensor.shape for tensor in inputs)
        known = self._captured.get((shapes, self._variant()))
        if known is None:
            known = self._captured[shapes, self._variant()] = self._capture(inputs)
        for own, given in zip(known.inputs, inputs, strict=True):
            if own is not given:
                own.copy_(given)
        known.graph.replay()
        return known.outputs

    def _capture(self, inputs: tuple[torch.Tensor, ...]) -> _Captured:
        own = inputs if self._adopts else tuple(tensor.clone() for tensor in inputs)
        side = self._site.stream
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_CALLS):
                self._module(*own)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        mode = "thread_local"  # others may upload meanwhile
        with torch.cuda.graph(graph, pool=self._site.pool, stream=side, capture_error_mode=mode):
            outputs = self._module(*own)
        return _Captured(own, graph, outputs)


@dataclass(frozen=True)
class _Captured:
    inputs: tuple[torch.Tensor, ...]
    graph: torch.cuda.CUDAGraph
    outputs: Any
