"""The kernels' arithmetic against float64, on the CPU, in Triton's interpreter.

`test_interpreter.py` runs this file; by hand, set TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by test_interpreter.py", allow_module_level=True)
pytest.importorskip("triton")

from low_rank import SlotFactors, Term, add_by_row, plan_of
from swiftdiffusion.kernels import (
    add_layer_norm,
    bias_residual,
    cfg_step,
    configurations,
    geglu,
    group_norm_silu,
    grouped_lora,
    lora_patch,
    quantise_rows,
)
from swiftdiffusion.kernels.lora_tables import WeightTable
from swiftdiffusion.kernels.step_coefficients import COLUMNS

TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Of the largest value: rounding of the result, and for float32 of the sums."""

DTYPES = st.sampled_from(list(TOLERANCE))
ORDERS = st.sampled_from([torch.contiguous_format, torch.channels_last])
SEEDS = st.integers(0, 2**16)

few = settings(
    max_examples=16, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def small_blocks() -> Iterator[None]:
    """Tiles so small that pictures of a few pixels need several, and are split."""
    full = configurations.configuration

    def small(op: str, device: torch.device | int) -> dict[str, int]:
        sizes = {
            "group_norm_silu": {"tile": 256, "one_program_bytes": 600, "programs_per_sm": 1},
            "geglu": {"block_rows": 2, "block_columns": 16},
            "bias_residual": {"block_rows": 2, "block_columns": 16},
            "cfg_step": {"block": 32},
            "lora_patch": {"block_rows": 32, "block_columns": 32, "block_rank": 16},
            "grouped_lora": {"block_tokens": 16, "block_columns": 32, "block_features": 32, "block_rank": 32},
        }
        return full(op, device) | sizes[op]

    with pytest.MonkeyPatch.context() as patch:
        for module in (bias_residual, cfg_step, geglu, group_norm_silu, grouped_lora, lora_patch):
            patch.setattr(module, "configuration", small)
        patch.setattr("swiftdiffusion.kernels.lora_tables.configuration", small)
        yield


def assert_near(result: torch.Tensor, exact: torch.Tensor, tolerance: float | None = None) -> None:
    assert result.isfinite().all()
    limit = TOLERANCE[result.dtype] if tolerance is None else tolerance
    assert (result.double() - exact).abs().max() <= limit * max(1.0, float(exact.abs().max()))


@pytest.mark.usefixtures("small_blocks")
@few
@given(
    seed=SEEDS,
    dtype=DTYPES,
    order=ORDERS,
    batch=st.integers(1, 2),
    groups=st.integers(1, 5),
    per_group=st.sampled_from([1, 3, 4, 10, 70]),
    size=st.sampled_from([(2, 1), (3, 5), (4, 4), (9, 7)]),
    silu=st.booleans(),
    embedded=st.booleans(),
)
def test_group_norm_silu(
    seed: int,
    dtype: torch.dtype,
    order: torch.memory_format,
    batch: int,
    groups: int,
    per_group: int,
    size: tuple[int, int],
    silu: bool,
    embedded: bool,
) -> None:
    torch.manual_seed(seed)
    channels = groups * per_group
    x = torch.randn(batch, channels, *size).to(dtype).contiguous(memory_format=order)
    weight, bias = torch.randn(2, channels).to(dtype)
    embedding = torch.randn(batch, channels).to(dtype) if embedded else None
    y = group_norm_silu.launch(x, weight, bias, embedding, groups, 1e-5, silu)
    wide = None if embedding is None else embedding.double()
    exact = group_norm_silu.reference(x.double(), weight.double(), bias.double(), wide, groups, 1e-5, silu)
    near_zero_variance = 20 if per_group * size[0] * size[1] < 8 else 1  # amplifies rounding of the mean
    assert_near(y, exact, TOLERANCE[dtype] * near_zero_variance)
    assert y.stride() == group_norm_silu.reference(x, weight, bias, None, groups, 1e-5, silu).stride()


@few
@given(seed=SEEDS, dtype=DTYPES, rows=st.integers(0, 3), width=st.sampled_from([1, 8, 24, 33]), far=st.booleans())
def test_add_layer_norm(seed: int, dtype: torch.dtype, rows: int, width: int, far: bool) -> None:
    torch.manual_seed(seed)
    x, residual = (torch.randn(rows, 2, width) + 10 * far).to(dtype), torch.randn(rows, 2, width).to(dtype)
    weight, bias = torch.randn(2, width).to(dtype)
    total, y = add_layer_norm.launch(x, residual, weight, bias, 1e-5)
    if dtype != torch.bfloat16:  # which the interpreter cuts off where a GPU rounds
        assert torch.equal(total, x + residual)
    assert y.shape == x.shape
    if rows:
        exact = torch.nn.functional.layer_norm(total.double(), (width,), weight.double(), bias.double(), 1e-5)
        assert_near(y, exact, 10 * TOLERANCE[dtype] if far else None)


@few
@given(seed=SEEDS, dtype=DTYPES, rows=st.integers(0, 3), width=st.sampled_from([1, 16, 33]))
def test_quantise_rows(seed: int, dtype: torch.dtype, rows: int, width: int) -> None:
    """To the bit of the CPU's operators: before the values are rounded, and after."""
    torch.manual_seed(seed)
    x = (10 * torch.randn(rows, 2, width)).to(dtype)
    x[:1, :1] = 0
    values, scales = quantise_rows.quantise_rows(x)
    unrounded, rounded, found = torch.empty_like(x, dtype=torch.float32), values.clone(), torch.empty_like(scales)
    quantise_rows.launch(x, unrounded, found)
    assert torch.equal(found, scales)
    assert torch.equal(unrounded.to(torch.float8_e4m3fn).float(), values.float())
    quantise_rows.launch(x, rounded.zero_(), found)
    carries = values.float().abs().frexp().exponent > unrounded.abs().frexp().exponent  # these the interpreter halves
    assert torch.equal(rounded.float()[~carries], values.float()[~carries])


@pytest.mark.usefixtures("small_blocks")
@few
@given(
    seed=SEEDS,
    dtype=DTYPES,
    order=ORDERS,
    other=ORDERS,
    batch=st.integers(0, 2),
    channels=st.sampled_from([1, 5, 20]),
    size=st.sampled_from([(1, 1), (3, 5), (4, 6)]),
)
def test_bias_residual(
    seed: int,
    dtype: torch.dtype,
    order: torch.memory_format,
    other: torch.memory_format,
    batch: int,
    channels: int,
    size: tuple[int, int],
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(batch, channels, *size).to(dtype).contiguous(memory_format=order)
    residual = torch.randn(batch, channels, *size).to(dtype).contiguous(memory_format=other)
    bias = torch.randn(channels).to(dtype)
    y = bias_residual.launch(x, bias, residual)
    assert y.shape == x.shape
    if batch:
        assert y.stride() == bias_residual.reference(x, bias, residual).stride()
        assert_near(y, bias_residual.reference(x.double(), bias.double(), residual.double()))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pixels", [8, 20])
def test_group_norm_of_sdxl_in_its_real_blocks(order: torch.memory_format, pixels: int) -> None:
    """Groups of 10, in one launch and in two; a mean far from 0, where E[x²] - E[x]² in float32 has no digit left."""
    torch.manual_seed(0)
    x = (torch.randn(1, 320, pixels, pixels) + 1000).contiguous(memory_format=order)
    weight, bias = torch.randn(2, 320)
    y = group_norm_silu.launch(x, weight, bias, None, 32, 1e-5, False)
    exact = group_norm_silu.reference(x.double(), weight.double(), bias.double(), None, 32, 1e-5, False)
    assert_near(y, exact, 1e-4)


@pytest.mark.usefixtures("small_blocks")
@few
@given(
    seed=SEEDS,
    dtype=DTYPES,
    rows=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    width=st.sampled_from([1, 8, 24, 40]),
    biased=st.booleans(),
)
def test_geglu(seed: int, dtype: torch.dtype, rows: list[int], width: int, biased: bool) -> None:
    torch.manual_seed(seed)
    x = (3 * torch.randn(*rows, 2 * width)).to(dtype)
    bias = torch.randn(2 * width).to(dtype) if biased else None
    assert_near(geglu.launch(x, bias), geglu.reference(x.double(), None if bias is None else bias.double()))


@pytest.mark.usefixtures("small_blocks")
@few
@given(seed=SEEDS, dtype=DTYPES, order=ORDERS, batch=st.integers(1, 3), guided=st.integers(0, 3), memory=st.booleans())
def test_cfg_step(
    seed: int, dtype: torch.dtype, order: torch.memory_format, batch: int, guided: int, memory: bool
) -> None:
    """To the bit of the CPU's operators."""
    torch.manual_seed(seed)
    shape = (batch, 4, 5, 3)
    sample = torch.randn(shape).contiguous(memory_format=order)
    conditional, unconditional = (torch.randn(shape).to(dtype) for _ in range(2))
    previous, coefficients = torch.randn(shape), torch.randn(batch, COLUMNS)
    coefficients[0 if memory else slice(None), 8] = 0  # `along_previous`
    others = (unconditional[:guided] if guided else None, previous if memory else None)
    results = cfg_step.launch(sample, conditional, coefficients, *others)
    for result, wanted in zip(results, cfg_step.reference(sample, conditional, coefficients, *others), strict=True):
        assert torch.equal(result, wanted)
        assert result.stride() == wanted.stride()


@pytest.mark.usefixtures("small_blocks")
@few
@given(
    seed=SEEDS,
    dtype=DTYPES,
    factors=st.sampled_from([torch.float32, torch.float16]),  # the interpreter multiplies bfloat16's bit patterns
    order=ORDERS,
    adapted=st.dictionaries(st.integers(0, 3), st.lists(st.integers(1, 20), max_size=2), max_size=4),
)
def test_lora_patch(
    seed: int, dtype: torch.dtype, factors: torch.dtype, order: torch.memory_format, adapted: dict[int, list[int]]
) -> None:
    torch.manual_seed(seed)
    weights = [torch.randn(shape).to(dtype) for shape in ((40, 48), (6, 5), (33, 4, 3, 3), (3, 16))]
    weights[2] = weights[2].contiguous(memory_format=order)
    originals = [weight.clone() for weight in weights]
    table = WeightTable(weights)
    terms = {
        module: [
            Term(
                torch.randn(len(weights[module]), rank).to(factors),
                torch.randn(rank, weights[module][0].numel()).to(factors),
                0.3,
            )
            for rank in ranks
        ]
        for module, ranks in adapted.items()
    }
    everything = range(len(weights))
    for wanted in (terms, {}):
        plan = plan_of(table, wanted, restored=everything)
        for weight in weights:
            weight.fill_(torch.nan)  # what is not written shows
        tables = (plan.factors, plan.slots, plan.terms, plan.scales, plan.tiles, plan.block)
        lora_patch.launch(table.buffers, table.pristine, *tables)
        for module, (weight, original) in enumerate(zip(weights, originals, strict=True)):
            exact = original.double()
            for term in wanted.get(module, []):
                exact = exact + term.scale * (term.up.double() @ term.down.double()).reshape(weight.shape)
            if wanted.get(module):
                assert_near(weight, exact)
            else:
                assert torch.equal(weight, original)


@pytest.mark.usefixtures("small_blocks")
@few
@given(
    seed=SEEDS,
    dtype=st.sampled_from([torch.float32, torch.float16]),
    factors=st.sampled_from([torch.float32, torch.float16]),
    tokens=st.sampled_from([1, 5, 16, 33]),
    features=st.sampled_from([1, 24, 40, 530]),  # the last is split
    width=st.sampled_from([1, 16, 40]),
    ranks=st.lists(st.integers(0, 48), min_size=1, max_size=3),
    data=st.data(),
)
def test_grouped_lora(
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
    slots = data.draw(st.lists(st.integers(-1, len(ranks) - 1), min_size=1, max_size=4))
    held = SlotFactors.random(ranks, 48, features, width, factors)
    x, y = torch.randn(len(slots), tokens, features).to(dtype), torch.randn(len(slots), tokens, width).to(dtype)
    before, wanted = y.clone(), y.clone()
    arguments = (x, held.down, held.up, torch.tensor(slots, dtype=torch.int32), held.ranks)
    grouped_lora.launch(y, *arguments)
    assert_near(y, add_by_row(before, x, held, slots))
    grouped_lora.reference(wanted, *arguments)
    assert_near(y, wanted.double())
    for row, slot in enumerate(slots):
        if slot < 0 or not ranks[slot]:
            assert torch.equal(y[row], before[row])
