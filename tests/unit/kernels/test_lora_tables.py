"""One-launch LoRA patching on the CPU: the tables, and the eager reference that reads the same ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from low_rank import Term, plan_of
from swiftdiffusion.kernels.lora_patch import lora_patch
from swiftdiffusion.kernels.lora_tables import FactorGroup, WeightTable

SHAPES = ((6, 5), (8, 4, 3, 3), (3, 16), (130, 72))


def weights(dtype: torch.dtype, channels_last: bool = False) -> list[torch.Tensor]:
    """Of which the second half are views of one tensor."""
    made = [torch.randn(shape).to(dtype) for shape in (*SHAPES, (4, 8), (4, 8))]
    made[4:] = torch.stack(made[4:]).unbind()
    if channels_last:
        made[1] = made[1].contiguous(memory_format=torch.channels_last)
    return made


def term(weight: torch.Tensor, rank: int, scale: float, dtype: torch.dtype = torch.float32) -> Term:
    out, columns = len(weight), weight.numel() // len(weight)
    return Term(torch.randn(out, rank).to(dtype), torch.randn(rank, columns).to(dtype), scale)


def patched(weight: torch.Tensor, terms: list[Term]) -> torch.Tensor:
    total = weight.double()
    for one in terms:
        total = total + one.scale * (one.up.double() @ one.down.double()).reshape(weight.shape)
    return total


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    factors=st.sampled_from([torch.float32, torch.float16]),
    channels_last=st.booleans(),
    adapted=st.dictionaries(st.integers(0, 5), st.lists(st.integers(1, 20), max_size=3), max_size=6),
)
def test_patches_and_restores(
    seed: int, dtype: torch.dtype, factors: torch.dtype, channels_last: bool, adapted: dict[int, list[int]]
) -> None:
    torch.manual_seed(seed)
    ours = weights(dtype, channels_last)
    originals = [weight.clone() for weight in ours]
    table = WeightTable(ours)
    terms = {module: [term(ours[module], rank, 0.3, factors) for rank in ranks] for module, ranks in adapted.items()}
    lora_patch(table, plan_of(table, {0: [term(ours[0], 2, 9.0)]}))
    lora_patch(table, plan_of(table, terms, restored=[0]))
    for module, (weight, original) in enumerate(zip(ours, originals, strict=True)):
        of_module = terms.get(module, [])
        if of_module:
            torch.testing.assert_close(weight, patched(original, of_module).to(dtype), rtol=1e-2, atol=1e-4)
        else:
            assert torch.equal(weight, original)
    lora_patch(table, plan_of(table, {}, restored=range(6)))
    assert all(torch.equal(weight, original) for weight, original in zip(ours, originals, strict=True))


def test_scales_can_be_changed_in_place() -> None:
    ours = weights(torch.float32)
    original = ours[3].clone()
    table = WeightTable(ours)
    one = term(ours[3], 4, 1.0)
    plan = plan_of(table, {3: [one]})
    plan.scales.fill_(-0.5)
    lora_patch(table, plan)
    torch.testing.assert_close(ours[3], patched(original, [Term(one.up, one.down, -0.5)]).float())


def test_tables_are_as_documented() -> None:
    ours = weights(torch.float16)
    table = WeightTable(ours)
    assert len(table.buffers) == 5, "views of one tensor share a buffer"
    plan = plan_of(table, {3: [term(ours[3], 3, 1.0, torch.float16), term(ours[3], 9, 2.0)]}, restored=[0, 5])
    assert plan.modules == (0, 3, 5)
    assert plan.factors.dtype == torch.float32, "of mixed types"
    assert plan.terms[:, 2].tolist() == [8, 16], "ranks are padded to whole vectors"
    assert plan.slots[:, 0].tolist() == [ours[module].data_ptr() for module in (0, 3, 5)]
    assert plan.slots[:, 6:8].tolist() == [[0, 0], [0, 2], [2, 2]]
    assert plan.slots[:, 9].tolist() == [0, 1, int(ours[5].data_ptr() % 16 == 0)]
    rows, columns = plan.block
    tiles = [-(-height // rows) * -(-width // columns) for height, width in ((6, 5), (130, 72), (4, 8))]
    assert plan.tiles.tolist() == [0] * tiles[0] + [1] * tiles[1] + [2] * tiles[2]
    assert plan.slots[:, 8].tolist() == [0, tiles[0], tiles[0] + tiles[1]]


def test_a_lora_without_terms_leaves_the_others_their_type() -> None:
    """One for the text encoders alone, beside one for the UNet."""
    ours = weights(torch.float16)
    table = WeightTable(ours)
    one = term(ours[0], 2, 1.0, torch.float16)
    packed = table.pack([FactorGroup([0], one.up[None], one.down[None], [1.0])])
    assert table.plan([(table.pack([]), 1.0), (packed, 1.0)]).factors.dtype == torch.float16


def test_what_does_not_fit_is_refused() -> None:
    ours = weights(torch.float32)
    table = WeightTable(ours)
    with pytest.raises(ValueError, match="factors"):
        plan_of(table, {0: [term(ours[1], 2, 1.0)]})
    with pytest.raises(ValueError, match="gaps"):
        WeightTable([torch.zeros(4, 6)[:, ::2]])
    with pytest.raises(ValueError, match="float16"):
        WeightTable([torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.float16)])
    with pytest.raises(ValueError, match="no weights"):
        WeightTable([])
    module = torch.nn.Linear(3, 3)
    moved = WeightTable([module.weight])
    plan = plan_of(moved, {}, restored=[0])
    module.weight.data = torch.zeros(3, 3)
    with pytest.raises(ValueError, match="moved"):
        lora_patch(moved, plan)


def test_the_op_says_what_it_changes() -> None:
    ours = weights(torch.float32)
    table = WeightTable(ours)
    plan = plan_of(table, {0: [term(ours[0], 2, 1.0)]})
    tables = (plan.factors, plan.slots, plan.terms, plan.scales, plan.tiles, list(plan.block))
    arguments = (table.buffers, table.pristine, *tables)
    torch.library.opcheck(torch.ops.swiftdiffusion.lora_patch, arguments, test_utils=("test_schema", "test_faketensor"))
