"""The kernels compiled ahead of time, without a GPU, for every architecture."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs the Triton language: pip install 'swiftdiffusion[kernels]'")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

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
from swiftdiffusion.kernels.compile import ARCHITECTURES, CompiledKernel, HiddenParametersUsedError, compile_kernel
from swiftdiffusion.kernels.kernel_source import KernelSource

HALF = torch.float16
SDXL_LARGE, SDXL_SMALL = (2, 320, 128 * 128), (2, 1280, 8 * 8)


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def sources(architecture: int) -> list[KernelSource]:
    return [
        *group_norm_silu.sources(SDXL_LARGE, 32, HALF, architecture),
        *geglu.sources(5120, HALF, architecture),
        *add_layer_norm.sources(1280, HALF, architecture),
        *bias_residual.sources(320, 128 * 128, HALF, architecture),
        *cfg_step.sources(HALF, architecture),
        *lora_patch.sources(HALF, HALF, architecture),
        *grouped_lora.sources(1024, 1280, 5120, 64, HALF, HALF, architecture),
    ]


def check(kernel: CompiledKernel, architecture: int, source: KernelSource) -> None:
    suffix = "a" if architecture >= 90 else ""
    assert f".target sm_{architecture}{suffix}" in kernel.ptx
    assert ".version 8.7" in kernel.ptx
    assert kernel.cubin.startswith(b"\x7fELF")
    assert kernel.shared_memory <= 99 * 1024, "what every architecture has"
    assert kernel.threads == 32 * source.num_warps
    assert [parameter.name for parameter in kernel.parameters] == [
        name for name in source.function.arg_names if name in source.types
    ]
    assert [hidden.type for hidden in kernel.hidden_parameters] == ["u64"] * len(kernel.hidden_parameters)
    assert len(re.findall(r"\.param \.", kernel.plain_ptx)) == len(source.types)
    assert ".local" not in kernel.ptx, "spilled by the compiler before the assembler"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_for_every_architecture(architecture: int) -> None:
    for source in sources(architecture):
        check(compile_kernel(source, architecture), architecture, source)


@pytest.mark.parametrize("architecture", [each for each in ARCHITECTURES if each >= 89])
def test_e4m3_is_rounded_by_the_gpu_where_there_is_any(architecture: int) -> None:
    for width in (640, 1280, 5120):
        (source,) = quantise_rows.sources(width, HALF, architecture)
        kernel = compile_kernel(source, architecture)
        check(kernel, architecture, source)
        assert "cvt.rn.satfinite.e4m3x2.f32" in kernel.ptx
        assert "ld.global.v4.b32" in kernel.ptx
        assert not re.search(r"div\.(full|approx)|rcp|st\.global\.b8", kernel.ptx)


def test_variants_for_one_architecture() -> None:
    variants = [
        *group_norm_silu.sources(SDXL_SMALL, 32, torch.bfloat16, 90, embedding=True),
        *group_norm_silu.sources(SDXL_SMALL, 32, HALF, 90, channels_last=False, silu=False),
        *geglu.sources(1280, torch.bfloat16, 90, bias=True),
        *add_layer_norm.sources(640, torch.float32, 90),
        *bias_residual.sources(320, 64 * 64, torch.bfloat16, 90, channels_last=False),
        *cfg_step.sources(torch.float32, 90),
        *quantise_rows.sources(320, torch.bfloat16, 90),
        *quantise_rows.sources(2560, torch.float32, 90),
        *lora_patch.sources(torch.bfloat16, torch.bfloat16, 90),
        *grouped_lora.sources(77, 2048, 640, 16, torch.bfloat16, torch.bfloat16, 90),
        *grouped_lora.sources(4096, 640, 640, 256, HALF, torch.float32, 90),
        *grouped_lora.sources(4096, 640, 640, 256, torch.float32, HALF, 90),
    ]
    for source in variants:
        check(compile_kernel(source, 90), 90, source)


def test_sizes_of_one_which_a_launch_makes_constants() -> None:
    split = group_norm_silu.sources(SDXL_LARGE, 32, HALF, 90)
    others = (
        *geglu.sources(8, HALF, 90, bias=True),
        *add_layer_norm.sources(1, HALF, 90),
        *quantise_rows.sources(1, HALF, 90),
        *bias_residual.sources(1, 1, HALF, 90, channels_last=False),
        *grouped_lora.sources(1, 1, 1, 16, HALF, HALF, 90),
    )
    for source in (*split, *group_norm_silu.sources(SDXL_SMALL, 32, HALF, 90), *others):
        ones = {name: 1 for name, of in source.types.items() if of == "i32"}
        types = {name: of for name, of in source.types.items() if name not in ones}
        compile_kernel(
            replace(source, types=types, constants={**source.constants, **ones}, multiples_of_16=frozenset()), 90
        )


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_is_accessed_in_16_byte_vectors(channels_last: bool) -> None:
    for source in group_norm_silu.sources(SDXL_LARGE, 32, HALF, 90, channels_last):
        ptx = compile_kernel(source, 90).ptx
        assert "ld.global.v4.b32" in ptx
        assert ("st.global.v4.b32" in ptx) == ("y" in source.types)


def test_sums_are_moved_in_16_byte_vectors() -> None:
    for source in (*add_layer_norm.sources(1280, HALF, 90), *bias_residual.sources(640, 64 * 64, HALF, 90)):
        ptx = compile_kernel(source, 90).ptx
        assert "ld.global.v4.b32" in ptx
        assert "st.global.v4.b32" in ptx
        assert "st.global.b16" not in ptx


@pytest.mark.parametrize("side", [128, 104, 64, 32, 13])
@pytest.mark.parametrize("channels", [320, 640, 1280, 2560])
def test_no_batch_compiles_a_norm_anew(channels: int, side: int) -> None:
    """Else the first batch of a size waits for compilers in mid-run."""
    of_one, *others = (
        [
            (source.function, source.constants, source.multiples_of_16)
            for source in group_norm_silu.sources((rows, channels, side * side), 32, HALF, 90)
        ]
        for rows in (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)
    )
    assert all(other == of_one for other in others)


def test_loras_of_any_rank_are_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside SDXL's weights, however many rows there are: `warm_up` has launched all that they want."""

    def variants(tokens: int, features: int, width: int, bucket: int) -> list[tuple[object, ...]]:
        sources = grouped_lora.sources(tokens, features, width, bucket, HALF, HALF, 90)
        return [(each.function, *sorted(each.constants.items()), each.multiples_of_16) for each in sources]

    ahead: list[tuple[object, ...]] = []

    def noted(y: torch.Tensor, x: torch.Tensor, down: torch.Tensor, *_: torch.Tensor) -> None:
        ahead.extend(variants(y.shape[1], x.shape[2], y.shape[2], down.shape[1]))

    monkeypatch.setattr(grouped_lora, "launch", noted)
    grouped_lora.warm_up(HALF, HALF, torch.device("cpu"))
    for tokens, (features, width) in product(
        (77, 64, 1024, 4096), ((640, 640), (1280, 10240), (5120, 1280), (2048, 640))
    ):
        for bucket in (16, 32, 64, 128, 256):
            assert all(each in ahead for each in variants(tokens, features, width, bucket))


def test_factors_and_activations_are_moved_in_16_byte_vectors() -> None:
    shrink, expand = (
        compile_kernel(source, 90).ptx for source in grouped_lora.sources(77, 640, 640, 64, HALF, HALF, 90)
    )
    assert "cp.async.cg.shared.global [ %r" in shrink
    assert "wgmma" in shrink
    assert "wgmma" in expand
    assert "ld.global.v4.b32" in expand
    assert "ld.global.b16" not in expand
    for ptx in (shrink, expand):
        assert "st.global.v4.b32" in ptx
        assert "st.global.b16" not in ptx


def test_a_sampler_step_rounds_every_operation() -> None:
    """As the CPU does: no product is contracted with a sum, no quotient is approximate."""
    (source,) = cfg_step.sources(HALF, 90)
    ptx = compile_kernel(source, 90).ptx
    assert "fma" not in ptx
    assert "div.rn.f32" in ptx
    assert not re.search(r"div\.(full|approx)|rcp", ptx)


def test_plain_ptx_assembles(tmp_path: Path) -> None:
    """And its kernel takes what a caller passes, nothing more."""
    from triton import knobs

    (source,) = group_norm_silu.sources(SDXL_SMALL, 32, HALF, 90)
    kernel = compile_kernel(source, 90)
    assert kernel.hidden_parameters, "if Triton has stopped adding them, `plain_ptx` can go"
    text, cubin = tmp_path / "kernel.ptx", tmp_path / "kernel.cubin"
    text.write_text(kernel.plain_ptx)
    subprocess.run([knobs.nvidia.ptxas.path, "--gpu-name=sm_90a", str(text), "-o", str(cubin)], check=True)
    listed = subprocess.run(
        [knobs.nvidia.cuobjdump.path, "--dump-elf", str(cubin)], check=True, capture_output=True, text=True
    ).stdout
    assert len(re.findall(r"EIATTR_KPARAM_INFO", listed)) == len(kernel.parameters)


def test_hidden_parameters_that_are_used_are_not_taken_out() -> None:
    ptx = ".visible .entry f(\n\t.param .u64 f_param_0,\n\t.param .u64 f_param_1\n)\n{ ld.param.b64 r, [f_param_1]; }"
    (source,) = geglu.sources(1280, HALF, 80)
    kernel = compile_kernel(source, 80)
    visible, hidden = kernel.parameters[:1], replace(kernel.hidden_parameters[0], name="f_param_1")
    broken = replace(kernel, name="f", ptx=ptx, parameters=visible, hidden_parameters=(hidden,))
    with pytest.raises(HiddenParametersUsedError, match="f_param_1"):
        _ = broken.plain_ptx


def test_sources_have_to_name_every_parameter() -> None:
    (source,) = geglu.sources(1280, HALF, 90)
    with pytest.raises(ValueError, match="geglu takes"):
        compile_kernel(replace(source, constants={}), 90)
