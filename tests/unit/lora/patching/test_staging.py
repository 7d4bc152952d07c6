"""Tensors sent through pieces of memory that are used again: on the CPU, where events can be looked at."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch

from swiftdiffusion.python_backends.lora.files.canonical import Group
from swiftdiffusion.python_backends.lora.patching.staging import PIECES, Staging, _Piece

CPU = torch.device("cpu")
PIECE_BYTES = 64


class Transfers:
    """An event in the place of CUDA's: what is sent must not change before somebody has waited for its end."""

    def __init__(self, memory: torch.Tensor, failures: Iterator[str]) -> None:
        self._memory, self._failures = memory, failures
        self._on_its_way: torch.Tensor | None = None

    def record(self, stream: None) -> None:
        """A transfer begins."""
        assert self._on_its_way is None, "nobody waited for the last"
        self._on_its_way = self._memory.clone()

    def synchronize(self) -> None:
        """It ends."""
        assert self._on_its_way is None or torch.equal(self._on_its_way, self._memory), "filled anew too soon"
        self._on_its_way = None
        for failure in self._failures:
            raise RuntimeError(failure)


def staging(*failures: str) -> Staging:
    made, remaining = Staging(CPU, PIECE_BYTES), iter(failures)
    for _ in range(PIECES):
        memory = made._free.get().memory
        made._free.put(_Piece(memory, Transfers(memory, remaining)))  # type: ignore[arg-type]
    return made


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "many pieces": torch.randn(50, 40, generator=random),
        "half": torch.randn(3, 11, generator=random).half(),
        "bfloat16": torch.randn(7, 1, 9, generator=random).bfloat16(),
        "whole pieces": torch.randn(2, 16, generator=random),
        "strided": torch.randn(6, 10, generator=random).T[1:],
        "one number": torch.tensor(1.5 + seed),
        "none": torch.zeros(0, 4),
    }


def group(given: dict[str, torch.Tensor]) -> Group:
    return Group("unet", "low_rank", ("a",), (1.0,), given)


@pytest.mark.parametrize("mode", [nullcontext, torch.inference_mode, torch.no_grad])
def test_what_arrives_is_what_was_sent(mode: type) -> None:
    given = [group(tensors(seed)) for seed in range(3)]
    with mode():
        sent = staging().send(given)
    assert [(each.component, each.modules) for each in sent] == [(each.component, each.modules) for each in given]
    for ours, theirs in zip(sent, given, strict=True):
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name, tensor in theirs.tensors.items():
            copy = ours.tensors[name]
            assert (copy.dtype, copy.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(copy, tensor), name
            assert not tensor.numel() or copy.data_ptr() != tensor.data_ptr()
    assert staging().send(()) == []


def test_several_threads_send_at_once() -> None:
    shared, given = staging(), [group(tensors(seed)) for seed in range(12)]
    with ThreadPoolExecutor(4) as threads:
        sent = [groups[0] for groups in threads.map(lambda each: shared.send([each]), given)]
    for ours, theirs in zip(sent, given, strict=True):
        assert all(torch.equal(ours.tensors[name], tensor) for name, tensor in theirs.tensors.items())


def test_a_failure_is_told_once_all_is_still() -> None:
    failing = staging("the device is lost")
    with pytest.raises(RuntimeError, match="the device is lost"):
        failing.send([group(tensors())])
    assert failing._free.qsize() == PIECES
    (sent,) = failing.send([group(tensors())])
    assert torch.equal(sent.tensors["many pieces"], tensors()["many pieces"])
