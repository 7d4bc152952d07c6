"""The kernels on a GPU, through their ops, against float64 on the CPU."""

from __future__ import annotations

import pytest
import torch

from low_rank import SlotFactors, Term, add_by_row, plan_of
from swiftdiffusion.kernels import (
    add_layer_norm,
    bias_residual,
    cfg_step,
    geglu,
    group_norm_silu,
    grouped_lora,
    lora_patch,
    quantise_rows,
)
from swiftdiffusion.kernels.lora_tables import WeightTable
from swiftdiffusion.kernels.step_coefficients import COLUMNS
from swiftdiffusion.python_backends.networks import fp8

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

TOLERANCE = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
"""Of the norm of the result."""

DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_near(result: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    assert (result.cpu().double() - exact).norm() <= TOLERANCE[dtype] * exact.norm()


FP8 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with e4m3"
)


@FP8
@DTYPES
@pytest.mark.parametrize("width", [64, 1280, 5120])
def test_quantise_rows(dtype: torch.dtype, width: int) -> None:
    """To the CPU's bits."""
    x = (10 * torch.randn(2, 33, width)).to(dtype)
    x[0, 0] = 0
    found, wanted = quantise_rows.quantise_rows(x.cuda()), quantise_rows.quantise_rows(x)
    assert torch.equal(found[0].cpu().view(torch.uint8), wanted[0].view(torch.uint8))
    assert torch.equal(found[1].cpu(), wanted[1])


@FP8
@DTYPES
@pytest.mark.parametrize(("rows", "columns", "width"), [(1, 64, 32), (77, 640, 2560), (4096, 3840, 1280)])
def test_a_product_of_8_bit_floats(dtype: torch.dtype, rows: int, columns: int, width: int) -> None:
    """As the CPU emulates it, to bfloat16's roundings."""
    x, weight, bias = torch.randn(rows, width).to(dtype), torch.randn(columns, width).to(dtype), torch.randn(columns)
    copy, bias = fp8.Fp8Weight(*quantise_rows.quantise_rows(weight)), bias.to(dtype)
    on_gpu = fp8.Fp8Weight(copy.values.cuda(), copy.scales.cuda())
    found = fp8.linear(x.cuda(), on_gpu, bias.cuda())
    assert found.dtype == dtype
    assert_near(found, fp8.linear(x, copy, bias).double(), torch.bfloat16)


@DTYPES
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((2, 320, 128, 128), 32),
        ((2, 1920, 32, 32), 32),
        ((2, 1280, 8, 8), 32),
        ((1, 30, 9, 7), 3),
        ((1, 128, 512, 512), 32),
    ],
)
def test_group_norm_silu(
    dtype: torch.dtype, order: torch.memory_format, shape: tuple[int, int, int, int], groups: int
) -> None:
    x = (torch.randn(shape) + 1).to(dtype).contiguous(memory_format=order)
    weight, bias = torch.randn(2, shape[1]).to(dtype)
    embedding = torch.randn(shape[:2]).to(dtype)
    y = group_norm_silu.group_norm_silu(x.cuda(), groups, weight.cuda(), bias.cuda(), embedding=embedding.cuda())
    assert y.stride() == x.stride()
    wide = (tensor.double() for tensor in (x, weight, bias, embedding))
    assert_near(y, group_norm_silu.reference(*wide, groups, 1e-5, True), dtype)


@DTYPES
@pytest.mark.parametrize("width", [1280, 5120, 33])
@pytest.mark.parametrize("biased", [False, True])
def test_geglu(dtype: torch.dtype, width: int, biased: bool) -> None:
    x = torch.randn(2, 77, 2 * width).to(dtype)
    bias = torch.randn(2 * width).to(dtype) if biased else None
    y = geglu.geglu(x.cuda(), None if bias is None else bias.cuda())
    assert_near(y, geglu.reference(x.double(), None if bias is None else bias.double()), dtype)


@DTYPES
@pytest.mark.parametrize("width", [640, 1280, 33])
def test_add_layer_norm(dtype: torch.dtype, width: int) -> None:
    """The sum to the bit of PyTorch's."""
    x, residual = torch.randn(2, 2, 77, width).to(dtype)
    weight, bias = torch.randn(2, width).to(dtype)
    total, y = add_layer_norm.add_layer_norm(*(tensor.cuda() for tensor in (x, residual, weight, bias)))
    assert torch.equal(total.cpu(), x + residual)
    exact = torch.nn.functional.layer_norm((x + residual).double(), (width,), weight.double(), bias.double(), 1e-5)
    assert_near(y, exact, dtype)


@DTYPES
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(2, 320, 128, 128), (1, 30, 9, 7)])
def test_bias_residual(dtype: torch.dtype, order: torch.memory_format, shape: tuple[int, int, int, int]) -> None:
    x, residual = (torch.randn(shape).to(dtype).contiguous(memory_format=order) for _ in range(2))
    bias = torch.randn(shape[1]).to(dtype)
    y = bias_residual.bias_residual(x.cuda(), bias.cuda(), residual.cuda())
    assert y.stride() == x.stride()
    assert_near(y, bias_residual.reference(x.double(), bias.double(), residual.double()), dtype)


@DTYPES
def test_cfg_step(dtype: torch.dtype) -> None:
    """To the bit of the CPU."""
    shape = (3, 4, 128, 128)
    sample, previous, coefficients = torch.randn(shape), torch.randn(shape), torch.randn(3, COLUMNS)
    conditional, unconditional = (torch.randn(shape).to(dtype) for _ in range(2))
    arguments = (sample, conditional, coefficients, unconditional[:2], previous)
    results = cfg_step.cfg_step(*(tensor.cuda() for tensor in arguments))
    for result, wanted in zip(results, cfg_step.reference(*arguments), strict=True):
        assert torch.equal(result.cpu(), wanted)


@DTYPES
@pytest.mark.parametrize("factors", list(TOLERANCE), ids=str)
def test_lora_patch_in_a_captured_graph(dtype: torch.dtype, factors: torch.dtype) -> None:
    """A graph captured before the patch sees the patched weights: addresses do not change."""
    shapes = ((1280, 1280), (640, 320, 3, 3), (320, 4, 3, 3), (10, 7))
    weights = [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]
    weights[1] = weights[1].contiguous(memory_format=torch.channels_last)
    originals = [weight.cpu() for weight in weights]
    table = WeightTable(weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seen = [weight * 1 for weight in weights]
    terms = {
        module: [
            Term(torch.randn(len(weight), rank).to(factors), torch.randn(rank, weight[0].numel()).to(factors), 0.1)
            for rank in ranks
        ]
        for (module, weight), ranks in zip(enumerate(weights), ((4, 64), (17,), (128, 1), (3,)), strict=True)
    }
    for wanted in (terms, {}, {0: terms[0]}):
        lora_patch.lora_patch(table, plan_of(table, wanted, restored=range(len(weights))))
        graph.replay()
        for module, (weight, original) in enumerate(zip(seen, originals, strict=True)):
            exact = original.double()
            for term in wanted.get(module, []):
                exact = exact + term.scale * (term.up.double() @ term.down.double()).reshape(original.shape)
            if wanted.get(module):
                assert_near(weight, exact, dtype)
            else:
                assert torch.equal(weight.cpu(), original)


@DTYPES
@pytest.mark.parametrize("factors", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    ("tokens", "features", "width"), [(4096, 640, 640), (1024, 1280, 5120), (77, 2048, 640), (1, 1280, 320), (5, 30, 7)]
)
def test_grouped_lora_in_a_captured_graph(
    dtype: torch.dtype, factors: torch.dtype, tokens: int, features: int, width: int
) -> None:
    """A graph captured once serves any mixture: slots, factors and ranks are read when it runs."""
    x, y = torch.randn(4, tokens, features).to(dtype), torch.randn(4, tokens, width).to(dtype)
    mixtures = (([0, 1, -1, 1], [100, 5, 0]), ([2, -1, 0, 1], [0, 128, 64]), ([-1, -1, -1, -1], [1, 1, 1]))
    held = SlotFactors.random([0, 0, 0], 128, features, width, factors)
    ours = SlotFactors(*(tensor.cuda() for tensor in held))
    slots, result, given = torch.full((4,), -1, dtype=torch.int32, device="cuda"), y.cuda(), x.cuda()
    grouped_lora.grouped_lora(result, given, ours.down, ours.up, slots, ours.ranks)  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grouped_lora.grouped_lora(result, given, ours.down, ours.up, slots, ours.ranks)
    for rows, ranks in mixtures:
        held = SlotFactors.random(ranks, 128, features, width, factors)
        for static, new in zip((*ours, slots, result), (*held, torch.tensor(rows, dtype=torch.int32), y), strict=True):
            static.copy_(new)
        graph.replay()
        used = [slot if slot >= 0 and ranks[slot] else -1 for slot in rows]
        assert_near(result, add_by_row(y, x, held, used), dtype)
        for row, slot in enumerate(used):
            if slot < 0:
                assert torch.equal(result[row].cpu(), y[row])
