"""Calls as CUDA graphs: one launch where there would be a thousand."""

from __future__ import annotations

import math
from collections.abc import Hashable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Replay = Callable[[], object]
    Outside = Callable[..., torch.Tensor]

GRAPHS = 48
"""Shapes that are kept, with LoRAs beside the weights and without. Whole requests bring two rows each: a batch of eight
has 1, 2, 4, 6 … 16 rows, and as many shapes more where SDXL's prompts are zeros or SD 1.5's halves alike. The rest is
for other sizes of pictures and sets of LoRAs. Any other shape costs three calls."""

WARM_UP_CALLS = 2
"""Before a capture: what is set up or compiled at the first call must not be captured."""


SEEN = 1024
"""Shapes that are remembered where only those that come twice are captured."""

SCARCE = 2**30
"""Bytes of a GPU's memory."""


class Recorder(Protocol):
    """Records what is launched, instead of launching it."""

    def aside(self) -> AbstractContextManager[None]:
        """In what calls are made that set up what a recording may not."""

    def begin(self) -> None:
        """From now on it records."""

    def end(self) -> Replay:
        """It does no more; launches what was recorded."""


class CudaRecorder:
    """Makes CUDA graphs of one memory pool; warmed up and captured on a stream of their own.

    cuBLAS keeps a workspace for each such stream.
    """

    def __init__(self, device: torch.device) -> None:
        """Records nothing yet."""
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
        self._graph = torch.cuda.CUDAGraph()
        self._on_stream = torch.cuda.stream(self._stream)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On that stream; then caches are emptied where memory is scarce, which a capture cannot do."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)
        if torch.cuda.mem_get_info()[0] < SCARCE:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def begin(self) -> None:
        """From now on this thread's launches are captured; `torch.cuda.graph` would empty caches each time."""
        self._graph, self._on_stream = torch.cuda.CUDAGraph(), torch.cuda.stream(self._stream)
        self._on_stream.__enter__()
        try:
            self._graph.capture_begin(self._pool, capture_error_mode="thread_local")  # others may upload meanwhile
        except BaseException:
            self._on_stream.__exit__(None, None, None)
            raise

    def end(self) -> Replay:
        """They are no more."""
        try:
            self._graph.capture_end()
        finally:
            self._on_stream.__exit__(None, None, None)
        return self._graph.replay


class CaptureSite:
    """What graphs that never run at the same time share. A call that is captured may leave its graph and come back."""

    def __init__(self, recorder: Recorder) -> None:
        """Captures nothing yet."""
        self._recorder = recorder
        self._pieces: list[Replay] | None = None  # of what is captured now

    def outside(self, function: Outside, x: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        """What a function makes of a tensor, in its place. It is not captured, but called again in every replay.

        Args:
            function: Gives a tensor like the first one.
            x: Made by the call, which does not use it again.
            *more: What else it takes; of a captured call always the same tensors.
        """
        pieces = self._pieces
        if pieces is None:
            return x.copy_(function(x, *more))
        self._pieces = None
        pieces.append(self._recorder.end())
        pieces.append(lambda: x.copy_(function(x, *more)))
        for piece in pieces[-2:]:
            piece()
        self._recorder.begin()
        self._pieces = pieces
        return x

    def capture(self, call: Callable[[], Any]) -> tuple[Sequence[Replay], Any]:
        """What makes a call again, in its order, and what the call gave; it was made."""
        with self._recorder.aside():
            for _ in range(WARM_UP_CALLS):
                call()
        pieces: list[Replay] = []
        self._recorder.begin()
        self._pieces = pieces
        try:
            outputs = call()
        finally:
            if self._pieces is not None:  # else something failed outside
                self._pieces = None
                pieces.append(self._recorder.end())
        pieces[-1]()
        return pieces, outputs


_Key = tuple[tuple[torch.Size, ...], tuple[tuple[int, ...], ...], Hashable]


class CudaGraphs:
    """Calls of a module, captured for each tuple of input shapes and each variant, and replayed ever after.

    Parameters are not copied: patching them in place, on the same stream, takes effect. Graphs of one site must not run
    at the same time, and of each the outputs hold until its next call.
    """

    def __init__(
        self,
        module: Callable[..., Any],
        site: CaptureSite,
        adopted: slice = slice(0),
        variant: Callable[[], Hashable] = lambda: None,
        *,
        at_second_sight: bool = False,
        most_bytes: float = math.inf,
    ) -> None:
        """Captures nothing yet.

        Args:
            module: Takes tensors and gives a tensor or a tuple of them. Its work depends on their shapes and on nothing
                else but the variant.
            site: Shared with the graphs that run before and after.
            adopted: Of the inputs those of which the first ones of a shape become the graph's own: what lies at the
                same place again is not copied, and later calls overwrite it. For what always lies there.
            variant: Of the module's work now.
            at_second_sight: Whether shapes are captured when they come again, not when they come first: where there
                are so many that some never come twice. The module then gives memory that its next call overwrites.
            most_bytes: That graphs' inputs and outputs may take, which stay as long as they do.
        """
        self._module, self._site, self._adopted, self._variant = module, site, adopted, variant
        least = 1 / GRAPHS
        self._captured: LRUCache[_Key, _Captured] = LRUCache(
            1.0, lambda captured: min(1.0, max(least, captured.nbytes / most_bytes))
        )
        self._seen: LRUCache[_Key, None] | None = LRUCache(SEEN) if at_second_sight else None

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """What the module gives, in memory that its next call overwrites.

        Args:
            *inputs: On the module's device.
        """
        strides = tuple(tensor.stride() for tensor in inputs[self._adopted])
        key = tuple(tensor.shape for tensor in inputs), strides, self._variant()
        known = self._captured.get(key)
        if known is None:
            if self._seen is not None and key not in self._seen:
                self._seen[key] = None
                return self._module(*inputs)
            known = self._captured[key] = self._capture(inputs)
            return known.outputs
        for own, given in zip(known.inputs, inputs, strict=True):
            if not _lies_at(own, given):
                own.copy_(given)
        for piece in known.pieces:
            piece()
        return known.outputs

    def forget(self) -> None:
        """All that was captured."""
        self._captured.clear()

    def _capture(self, inputs: tuple[torch.Tensor, ...]) -> _Captured:
        adopted = range(len(inputs))[self._adopted]
        own = tuple(tensor if number in adopted else tensor.clone() for number, tensor in enumerate(inputs))
        return _Captured(own, *self._site.capture(lambda: self._module(*own)))


@dataclass(frozen=True)
class _Captured:
    inputs: tuple[torch.Tensor, ...]
    pieces: Sequence[Replay]
    outputs: Any

    @property
    def nbytes(self) -> int:
        """Of what it is given and gives."""
        outputs = self.outputs if isinstance(self.outputs, tuple) else (self.outputs,)
        return sum(tensor.nbytes for tensor in (*self.inputs, *outputs))


def _lies_at(own: torch.Tensor, given: torch.Tensor) -> bool:
    return own is given or (own.data_ptr() == given.data_ptr() and own.stride() == given.stride())
