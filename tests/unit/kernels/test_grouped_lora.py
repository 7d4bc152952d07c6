"""LoRAs beside the weights on the CPU: against dense matrices in float64, and in graphs that outlive a LoRA set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from low_rank import SlotFactors, add_by_row
from swiftdiffusion.kernels.grouped_lora import grouped_lora
from swiftdiffusion.kernels.row_batches import RowBatch, row_batches

TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Of the largest value."""

DTYPES = st.sampled_from(list(TOLERANCE))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def numbers(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def example(slots: list[int], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, SlotFactors]:
    y, x = torch.randn(len(slots), 6, 20).to(dtype), torch.randn(len(slots), 6, 12).to(dtype)
    return y, x, SlotFactors.random([4, 16, 9], 16, 12, 20, dtype)


def assert_near(result: torch.Tensor, exact: torch.Tensor) -> None:
    assert (result.double() - exact).abs().max() <= TOLERANCE[result.dtype] * max(1.0, float(exact.abs().max()))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    dtype=DTYPES,
    factors=DTYPES,
    tokens=st.sampled_from([1, 7, 64]),
    features=st.sampled_from([1, 24, 320]),
    width=st.sampled_from([1, 40, 640]),
    ranks=st.lists(st.integers(0, 32), min_size=1, max_size=4),
    data=st.data(),
)
def test_is_the_dense_product_of_every_row_with_its_own_slot(
    seed: int,
    dtype: torch.dtype,
    factors: torch.dtype,
    tokens: int,
    features: int,
    width: int,
    ranks: list[int],
    data: st.DataObject,
) -> None:
    torch.manual_seed(seed)
    slots = data.draw(st.lists(st.integers(-1, len(ranks) - 1), min_size=1, max_size=8))
    held = SlotFactors.random(ranks, 32, features, width, factors)
    for slot, rank in enumerate(ranks):
        if not rank:
            held.down[slot] = torch.nan  # of a set that has gone
    x, y = torch.randn(len(slots), tokens, features).to(dtype), torch.randn(len(slots), tokens, width).to(dtype)
    before = y.clone()
    grouped_lora(y, x, held.down, held.up, numbers(slots), held.ranks)
    used = [slot if slot >= 0 and ranks[slot] else -1 for slot in slots]
    assert_near(y, add_by_row(before, x, held, used))
    for row, slot in enumerate(used):
        if slot < 0:
            assert torch.equal(y[row], before[row])


def test_rows_need_not_lie_together_in_memory() -> None:
    y, x, held = example([0, 2, -1])
    turned = x.mT.contiguous().mT
    again = y.clone()
    for result, given_x in ((y, x), (again, turned)):
        grouped_lora(result, given_x, held.down, held.up, numbers([0, 2, -1]), held.ranks)
    assert torch.equal(y, again)


def test_neighbours_with_small_factors_are_multiplied_together() -> None:
    ranks = [4, 4, 100, 0, 4]
    assert row_batches([0, 0, 1, 1, 4, 4], ranks, 128) == [RowBatch(0, 2, [0, 1, 4])]
    assert row_batches([0, -1, 1, 3, 4], ranks, 128) == [RowBatch(0, 1, [0]), RowBatch(2, 1, [1]), RowBatch(4, 1, [4])]
    assert row_batches([0, 2, 1, 1], ranks, 128) == [RowBatch(0, 1, [0]), RowBatch(1, 1, [2]), RowBatch(2, 2, [1])]
    assert row_batches([-1, 3], ranks, 128) == []


class Adapted(torch.nn.Linear):
    """A linear layer with slots beside its weight."""

    def __init__(self, held: SlotFactors, slots: torch.Tensor) -> None:
        super().__init__(held.down.shape[2], held.up.shape[1])
        self.held, self.slots = held, slots

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        y = super().forward(input)
        grouped_lora(y, input, self.held.down, self.held.up, self.slots, self.held.ranks)
        return 2 * y


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("graph", ["trace", "compile"])
def test_a_graph_sees_slots_that_change(graph: str) -> None:
    slots = [0, 1, 1, -1, 2]
    _, x, held = example(slots)
    layer = Adapted(held, numbers(slots))
    with torch.no_grad():
        if graph == "trace":
            call = torch.jit.trace(layer, (x,), check_trace=False)
        else:
            call = torch.compile(layer, backend="aot_eager", fullgraph=True)
        assert_near(call(x), 2 * add_by_row(torch.nn.functional.linear(x, layer.weight, layer.bias), x, held, slots))
        other = SlotFactors.random([16, 3, 1], 16, 12, 20, torch.float32)
        for mine, new in zip((*held, layer.slots), (*other, numbers([2, -1, 0, 0, 1])), strict=True):
            mine.copy_(new)
        assert_near(call(x), layer(x).double())
        y = torch.nn.functional.linear(x, layer.weight, layer.bias)
        assert_near(call(x), 2 * add_by_row(y, x, other, [2, -1, 0, 0, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_op_says_what_it_changes(dtype: torch.dtype) -> None:
    y, x, held = example([1, -1, 0], dtype)
    arguments = (y, x, held.down, held.up, numbers([1, -1, 0]), held.ranks)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.swiftdiffusion.grouped_lora, arguments, test_utils=checks)


def test_what_does_not_fit_is_refused() -> None:
    y, x, held = example([0, 1])
    slots = numbers([0, 1])
    with pytest.raises(ValueError, match=r"y \[2, 6, 19\].*wanted: \[B, T, out\]"):
        grouped_lora(y[..., :19], x, held.down, held.up, slots, held.ranks)
    with pytest.raises(ValueError, match="slots"):
        grouped_lora(y, x, held.down, held.up, slots[:1], held.ranks)
    with pytest.raises(ValueError, match="multiple of 16"):
        grouped_lora(y, x, held.down[:, :9], held.up[:, :, :9], slots, held.ranks)
    with pytest.raises(ValueError, match=r"torch.float16.*y as x"):
        grouped_lora(y.half(), x, held.down, held.up, slots, held.ranks)
    with pytest.raises(ValueError, match="at most 32 bits"):
        grouped_lora(y.double(), x.double(), held.down, held.up, slots, held.ranks)
    with pytest.raises(ValueError, match="int32"):
        grouped_lora(y, x, held.down, held.up, slots.long(), held.ranks)
    with pytest.raises(ValueError, match="up not contiguous"):
        grouped_lora(y, x, held.down, held.up.mT.contiguous().mT, slots, held.ranks)
