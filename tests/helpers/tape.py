"""CUDA graphs, but for a CPU: the operators of a call are made again, on the memory that they had, and nothing else.

What a call does in Python is not done again, as with real graphs. What these cannot have is refused: operators that
wait for the device, and memory from outside that nobody holds any more when they are replayed. What a call made and let
go is overwritten while others of the same tape are replayed, since graphs of one pool may have the same memory.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Made = list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]]
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


class _Call:
    """What the pieces of one captured call made.

    Attributes:
        memory: By address of a storage, a tensor over all of it.
        holders: By the same, those that Python had.
    """

    def __init__(self) -> None:
        self.memory: dict[int, torch.Tensor] = {}
        self.holders: dict[int, list[weakref.ref[torch.Tensor]]] = {}

    def overwrite(self) -> None:
        """What nobody holds."""
        for address, memory in self.memory.items():
            if memory.is_floating_point() and all(each() is None for each in self.holders[address]):
                memory.fill_(torch.nan)


class Tape(TorchDispatchMode):
    """A `cuda_graphs.Recorder`.

    Attributes:
        recorded: Pieces, so far.
        replayed: How often one was made again.
    """

    def __init__(self, _device: torch.device | None = None) -> None:
        super().__init__()
        self._made: Made = []
        self._calls: list[_Call] = []
        self._last: _Call | None = None
        self._own = WeakIdKeyDictionary()  # what operators gave → the same memory, held
        self.recorded = self.replayed = 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        yield
        self._calls.append(_Call())

    def begin(self) -> None:
        self._made = []
        self.__enter__()

    def end(self) -> Callable[[], None]:
        self.__exit__(None, None, None)
        self.recorded += 1
        return partial(self._replay, self._made, self._calls[-1])

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in WAITS, f"{func} waits for the device: no graph can have it"
        kwargs = kwargs or {}
        given, named = tree_map(self._taken, (args, kwargs))
        before = _tensors((args, kwargs))
        output = func(*args, **kwargs)
        for each in _tensors(output):
            if not any(each is other for other in before):
                self._note(each, {_address(other) for other in before})
        self._made.append((func, given, named, tree_map(self._taken, output)))
        return output

    def _note(self, output: torch.Tensor, before: set[int]) -> None:
        call, address = self._calls[-1], _address(output)
        if address not in before:
            call.memory[address] = output.detach()
        call.holders.setdefault(address, []).append(weakref.ref(output))
        self._own[output] = output.detach()

    def _taken(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return self._own[value] if value in self._own else weakref.ref(value)

    def _replay(self, made: Made, call: _Call) -> None:
        self.replayed += 1
        if call is not self._last:
            for each in self._calls:
                if each is not call:
                    each.overwrite()
        self._last = call
        for func, args, kwargs, output in made:
            there = partial(_there, func)
            given, named, outputs = tree_map(there, (args, kwargs, output))
            for own, new in zip(tree_leaves(outputs), tree_leaves(func(*given, **named)), strict=True):
                if isinstance(own, torch.Tensor) and own.data_ptr() != new.data_ptr():
                    own.copy_(new)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, torch.Tensor)]


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _there(func: Any, value: Any) -> Any:
    if not isinstance(value, weakref.ref):
        return value
    tensor = value()
    assert tensor is not None, f"{func} reads memory that is free"
    return tensor
