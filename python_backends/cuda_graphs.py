"""A module's calls as CUDA graphs: one launch where there would be a thousand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Callable

GRAPHS = 8
"""Shapes that are kept: 1, 2, 4 … rows of the sizes that are asked for. A new one costs three calls, once."""

WARM_UP_CALLS = 2
"""Before a capture: what is set up or compiled at the first call must not be captured."""

_Shapes = tuple[torch.Size, ...]


class CudaGraphs:
    """Calls of a module, captured for each tuple of input shapes and replayed ever after.

    Parameters are not copied: patching them in place, on the same stream, takes effect. Graphs of one pool must not run
    at the same time, and of each the outputs hold until its next call.
    """

    def __init__(self, module: Callable[..., Any], pool: Any, adopts: bool = False) -> None:
        """Captures nothing yet.

        Args:
            module: Takes tensors and gives a tensor or a tuple of them. Its work depends on their shapes alone.
            pool: `torch.cuda.graph_pool_handle()`: where the graphs' memory comes from.
            adopts: Whether the first inputs of a shape may become the graph's own: those that come back are then not
                copied. For what another graph gives.
        """
        self._module, self._pool, self._adopts = module, pool, adopts
        self._captured: LRUCache[_Shapes, _Captured] = LRUCache(GRAPHS)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """What the module gives, in memory that its next call overwrites.

        Args:
            *inputs: On the module's device.
        """
        shapes = tuple(tensor.shape for tensor in inputs)
        known = self._captured.get(shapes)
        if known is None:
            known = self._captured[shapes] = self._capture(inputs)
        for own, given in zip(known.inputs, inputs, strict=True):
            if own is not given:
                own.copy_(given)
        known.graph.replay()
        return known.outputs

    def _capture(self, inputs: tuple[torch.Tensor, ...]) -> _Captured:
        own = inputs if self._adopts else tuple(tensor.clone() for tensor in inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_CALLS):
                self._module(*own)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # others may upload meanwhile
            outputs = self._module(*own)
        return _Captured(own, graph, outputs)


@dataclass(frozen=True)
class _Captured:
    inputs: tuple[torch.Tensor, ...]
    graph: torch.cuda.CUDAGraph
    outputs: Any
