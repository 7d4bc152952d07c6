"""CUDA graphs, but for a CPU: the operators of a call are made again, on the memory that they had, and nothing else.

What a call does in Python is not done again, as with real graphs. What these cannot have is refused: operators that
wait for the device, and memory from outside that nobody holds any more when they are replayed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Made = list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]]
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


class Tape(TorchDispatchMode):
    """A `cuda_graphs.Recorder`.

    Attributes:
        recorded: Pieces, so far.
        replayed: How often one was made again.
    """

    def __init__(self, _device: torch.device | None = None) -> None:
        super().__init__()
        self._made: Made = []
        self._own: dict[int, torch.Tensor] = {}  # what its operators gave
        self.recorded = self.replayed = 0

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def begin(self) -> None:
        self._made = []
        self.__enter__()

    def end(self) -> Callable[[], None]:
        self.__exit__(None, None, None)
        self.recorded += 1
        return partial(self._replay, self._made)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in WAITS, f"{func} waits for the device: no graph can have it"
        output = func(*args, **(kwargs or {}))
        given = tree_map(self._taken, (args, kwargs or {}))
        self._own |= {id(each): each for each in tree_leaves(output) if isinstance(each, torch.Tensor)}
        self._made.append((func, *given, output))
        return output

    def _taken(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or id(value) in self._own:
            return value
        return weakref.ref(value)

    def _replay(self, made: Made) -> None:
        self.replayed += 1
        for func, args, kwargs, output in made:
            given, named = tree_map(partial(_there, func), (args, kwargs))
            for own, new in zip(tree_leaves(output), tree_leaves(func(*given, **named)), strict=True):
                if isinstance(own, torch.Tensor) and own.data_ptr() != new.data_ptr():
                    own.copy_(new)


def _there(func: Any, value: Any) -> Any:
    if not isinstance(value, weakref.ref):
        return value
    tensor = value()
    assert tensor is not None, f"{func} reads memory that is free"
    return tensor
