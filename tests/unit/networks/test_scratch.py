"""Memory that calls use in turn."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.python_backends.networks.scratch import ALIGNED, Scratch

TYPES = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.int32, torch.int8])
KINDS = st.lists(st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=4), TYPES), min_size=1, max_size=6)


@given(st.lists(KINDS, min_size=1, max_size=4))
def test_tensors_lie_beside_each_other_and_where_they_lay(calls: list[list[tuple[list[int], torch.dtype]]]) -> None:
    scratch = Scratch(torch.device("cpu"))
    for kinds in calls:
        like = [torch.empty(shape, dtype=dtype, device="meta").transpose(0, -1) for shape, dtype in kinds]
        taken = scratch.take(like)
        for number, (tensor, wanted) in enumerate(zip(taken, like, strict=True)):
            assert (tensor.shape, tensor.dtype, tensor.stride()) == (wanted.shape, wanted.dtype, wanted.stride())
            assert not tensor.numel() or (tensor.data_ptr() - scratch.memory.data_ptr()) % ALIGNED == 0
            tensor.fill_(number)
        assert all((tensor == number).all() for number, tensor in enumerate(taken))
        before = scratch.memory
        again = scratch.take(like)
        assert scratch.memory is before
        assert [each.data_ptr() for each in again] == [each.data_ptr() for each in taken]


def test_it_grows_to_twice_its_size_at_least() -> None:
    scratch = Scratch(torch.device("cpu"))
    sizes = []
    for number in range(1, 100):
        scratch.take([torch.empty(number * ALIGNED, dtype=torch.int8, device="meta")])
        sizes.append(scratch.memory.numel())
    assert len(set(sizes)) == len([1, 2, 4, 8, 16, 32, 64, 128])
