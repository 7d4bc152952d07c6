"""The kernels' ops on the CPU: diffusers' own arithmetic, schemas, memory formats, refusals. Needs no `triton`."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D

from swiftdiffusion.kernels.add_layer_norm import add_layer_norm
from swiftdiffusion.kernels.bias_residual import bias_residual
from swiftdiffusion.kernels.cfg_step import cfg_step
from swiftdiffusion.kernels.geglu import geglu
from swiftdiffusion.kernels.group_norm_silu import group_norm_silu
from swiftdiffusion.kernels.quantise_rows import E4M3, quantise_rows
from swiftdiffusion.kernels.registration import register_op
from swiftdiffusion.kernels.step_coefficients import COLUMNS

CHECKS = ("test_schema", "test_faketensor")
OPS = torch.ops.swiftdiffusion


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_group_norm_silu_is_what_a_resnet_block_computes(order: torch.memory_format) -> None:
    block = ResnetBlock2D(in_channels=20, out_channels=20, temb_channels=8, groups=4).eval()
    x = torch.randn(2, 20, 6, 5).contiguous(memory_format=order)
    time = torch.randn(2, 8)
    with torch.no_grad():
        hidden = group_norm_silu(x, 4, block.norm1.weight, block.norm1.bias, block.norm1.eps)
        embedding = block.time_emb_proj(torch.nn.functional.silu(time))
        norm = block.norm2
        hidden = group_norm_silu(block.conv1(hidden), 4, norm.weight, norm.bias, norm.eps, embedding=embedding)
        assert torch.equal(x + block.conv2(hidden), block(x, time))


def test_group_norm_without_silu() -> None:
    x, norm = torch.randn(2, 6, 9), torch.nn.GroupNorm(3, 6)
    assert torch.equal(group_norm_silu(x, 3, norm.weight, norm.bias, silu=False), norm(x))


def test_geglu_is_diffusers() -> None:
    module, x = GEGLU(6, 10), torch.randn(2, 3, 6)
    projected = module.proj(x)
    assert torch.equal(geglu(projected), module(x))
    bare = torch.nn.functional.linear(x, module.proj.weight)
    torch.testing.assert_close(geglu(bare, module.proj.bias), module(x))


def test_a_sum_and_its_norm_are_pytorchs() -> None:
    x, residual, norm = torch.randn(2, 3, 6), torch.randn(2, 3, 6), torch.nn.LayerNorm(6)
    total, normed = add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, norm(x + residual))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_bias_and_a_residual_are_pytorchs(order: torch.memory_format) -> None:
    x, residual = (torch.randn(2, 6, 3, 5).contiguous(memory_format=order) for _ in range(2))
    bias = torch.randn(6)
    assert torch.equal(bias_residual(x, bias, residual), residual + (x + bias[:, None, None]))


def test_rows_are_rounded_to_the_nearest_e4m3() -> None:
    """The largest of a row is 448; of two neighbours as near, the even one; zeros stay zeros."""
    every = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    every = every[every.isfinite()].unique()
    x = torch.stack([torch.randn(1000), torch.rand(1000) * 1e-6, torch.zeros(1000), torch.linspace(-448, 448, 1000)])
    x[3, :4] = torch.tensor([17.0, 19.0, 2**-10, 3 * 2**-10])
    values, scales = quantise_rows(x)
    assert torch.equal(scales[[0, 1, 3]], x.abs().amax(1)[[0, 1, 3]] / 448)
    scaled = x * (448 / x.abs().amax(1).clamp_min(1e-20))[:, None]
    assert torch.equal(values[3, :4].float(), torch.tensor([16.0, 20.0, 0.0, 2**-8]))
    assert torch.equal((values.float() - scaled).abs(), (every - scaled[..., None]).abs().amin(-1))
    assert not values[2].float().any()
    assert scales.isfinite().all()
    out = torch.empty_like(values), torch.empty_like(scales)
    assert quantise_rows(x, out)[0] is out[0]
    assert torch.equal(out[0].view(torch.uint8), values.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_ops_say_what_they_give(dtype: torch.dtype, order: torch.memory_format) -> None:
    x = torch.randn(2, 8, 3, 5).to(dtype).contiguous(memory_format=order)
    weight, embedding = torch.randn(8, dtype=dtype), torch.randn(2, 8, dtype=dtype)
    torch.library.opcheck(OPS.group_norm_silu, (x, weight, weight, embedding, 2, 1e-5, True), test_utils=CHECKS)
    torch.library.opcheck(OPS.add_layer_norm, (x, x, weight[:5], weight[:5], 1e-5), test_utils=CHECKS)
    torch.library.opcheck(OPS.bias_residual, (x, weight, x.flip(0)), test_utils=CHECKS)
    torch.library.opcheck(OPS.geglu, (x.permute(0, 2, 3, 1), weight), test_utils=CHECKS)
    out = torch.empty_like(x, dtype=E4M3).contiguous(), torch.empty(2, 8, 3)
    torch.library.opcheck(OPS.quantise_rows, (x, *out), test_utils="test_faketensor")  # others want sums of e4m3
    torch.library.opcheck(OPS.cfg_step, (x, x, torch.randn(2, COLUMNS), x[:1], x.float()), test_utils=CHECKS)
    assert group_norm_silu(x, 2, weight, weight).stride() == x.stride()
    assert bias_residual(x, weight, x.contiguous()).stride() == x.stride()
    assert cfg_step(x, x, torch.randn(2, COLUMNS))[0].stride() == x.stride()


def test_what_does_not_fit_is_refused() -> None:
    x, weight = torch.randn(2, 6, 4, 4), torch.ones(6)
    with pytest.raises(ValueError, match="4 groups"):
        group_norm_silu(x, 4, weight, weight)
    with pytest.raises(ValueError, match="embedding"):
        group_norm_silu(x, 3, weight, weight, embedding=torch.ones(1, 6))
    with pytest.raises(ValueError, match="weight"):
        group_norm_silu(x, 3, torch.ones(3), weight)
    with pytest.raises(ValueError, match="even"):
        geglu(torch.ones(2, 3))
    with pytest.raises(ValueError, match="bias"):
        geglu(torch.ones(2, 4), torch.ones(2))
    with pytest.raises(ValueError, match="residual"):
        add_layer_norm(x, x[:1], torch.ones(4), torch.ones(4))
    with pytest.raises(ValueError, match="weight"):
        add_layer_norm(x, x, weight, weight)
    with pytest.raises(ValueError, match="residual"):
        bias_residual(x, weight, x[:1])
    with pytest.raises(ValueError, match="bias"):
        bias_residual(x, torch.ones(4), x)
    with pytest.raises(ValueError, match=r"wanted: \[2, 6, 4, 4\] of e4m3"):
        quantise_rows(x, (x, torch.ones(2, 6, 4)))
    with pytest.raises(ValueError, match="unconditional"):
        cfg_step(x, x, torch.ones(2, COLUMNS), x[:, :3])
    with pytest.raises(ValueError, match="unconditional"):
        cfg_step(x[:1], x[:1], torch.ones(1, COLUMNS), x)
    with pytest.raises(ValueError, match="coefficients"):
        cfg_step(x, x, torch.ones(1, COLUMNS))
    with pytest.raises(ValueError, match="previous"):
        cfg_step(x, x, torch.ones(2, COLUMNS), x, x.half())


WITHOUT_TRITON = """
import importlib, pkgutil, sys
sys.modules["triton"] = None
import torch
import swiftdiffusion.kernels as kernels
for module in pkgutil.iter_modules(kernels.__path__, kernels.__name__ + "."):
    importlib.import_module(module.name)
from swiftdiffusion.kernels import geglu
from swiftdiffusion.kernels.triton_language import MissingTritonError
assert geglu.geglu(torch.zeros(2, 4)).shape == (2, 2)
for wants in (lambda: geglu.launch(torch.zeros(2, 4), None), lambda: geglu.sources(8, torch.float16, 90)):
    try:
        wants()
    except MissingTritonError as error:
        assert "pip install" in str(error), error
    else:
        raise AssertionError("no error")
"""


def test_everything_but_the_kernels_works_without_triton() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TRITON], check=True, timeout=120)


def test_reference_and_launcher_have_one_signature() -> None:
    def reference(x: torch.Tensor, groups: int) -> torch.Tensor:
        return x.clone()

    def launch(x: torch.Tensor, count: int) -> torch.Tensor:
        return x.clone()

    with pytest.raises(TypeError, match=r"of_two_minds: the reference is .*groups.*, the launcher .*count"):
        register_op("of_two_minds", reference, launch, lambda x, groups: torch.empty_like(x))


SCHEMAS = (
    "geglu(Tensor x, Tensor? bias) -> Tensor",
    "group_norm_silu(Tensor x, Tensor weight, Tensor bias, Tensor? embedding, SymInt groups, float eps, bool silu)"
    " -> Tensor",
    "cfg_step(Tensor sample, Tensor conditional, Tensor coefficients, Tensor? unconditional, Tensor? previous)"
    " -> (Tensor, Tensor)",
    "quantise_rows(Tensor x, Tensor(a1!) values, Tensor(a2!) scales) -> ()",
    "lora_patch(Tensor(a0!)[] weights, Tensor pristine, Tensor factors, Tensor slots, Tensor terms, Tensor scales,"
    " Tensor tiles, SymInt[] block) -> ()",
    "grouped_lora(Tensor(a0!) y, Tensor x, Tensor down, Tensor up, Tensor slots, Tensor ranks) -> ()",
)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.partition("(")[0])
def test_schemas_are_the_signatures_of_the_references(schema: str) -> None:
    name = schema.partition("(")[0]
    importlib.import_module(f"swiftdiffusion.kernels.{name}")
    op = getattr(torch.ops.swiftdiffusion, name)
    assert str(op.default._schema) == f"swiftdiffusion::{schema}"
