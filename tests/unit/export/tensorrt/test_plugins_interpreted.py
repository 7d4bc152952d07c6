"""The plugins' kernels launched as TensorRT launches them, in Triton's interpreter, against PyTorch's operators.

`test_plugin_kernels.py` runs this file; by hand, set TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by test_plugin_kernels.py", allow_module_level=True)
pytest.importorskip("triton")

from swiftdiffusion.export.tensorrt.plugin_kernels import GegluNode, GroupNormNode
from swiftdiffusion.kernels import geglu, group_norm_silu
from swiftdiffusion.kernels.kernel_source import KernelSource


def launch(source: KernelSource, grid: tuple[int, int], *arguments: torch.Tensor | int) -> None:
    """Inputs, integers, output: by position among the parameters that are no constants."""
    names = [name for name in source.function.arg_names if name in source.types]
    source.function[grid](**dict(zip(names, arguments, strict=True)), **source.constants)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("shape", "groups", "embedding", "silu"),
    [
        ((2, 60, 48, 40), 6, True, True),
        ((1, 320, 24, 24), 32, False, True),
        ((3, 48, 5, 3), 8, True, False),
        ((1, 64, 9, 8), 8, False, False),
    ],
)
def test_group_norm(shape: tuple[int, ...], groups: int, embedding: bool, silu: bool, channels_last: bool) -> None:
    torch.manual_seed(0)
    rows, channels, height, width = shape
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = (3 + torch.randn(shape)).contiguous(memory_format=order)
    weight, bias, added = torch.randn(channels), torch.randn(channels), torch.randn(rows, channels)
    y = torch.empty_like(x)
    pixels = height * width
    node = GroupNormNode(channels, pixels, True, groups, 1e-5, silu, embedding, torch.float32, channels_last)
    inputs = (x, added, weight, bias) if embedding else (x, weight, bias)
    launch(node.source(90, 1), (node.blocks(90, 1), rows), *inputs, channels, pixels, y)
    wanted = group_norm_silu.reference(x, weight, bias, added if embedding else None, groups, 1e-5, silu)
    assert (y - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("shape", [(2, 77, 320), (1, 5, 24)])
def test_geglu(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    rows, width = shape[0] * shape[1], shape[2] // 2
    y = torch.empty(*shape[:2], width)
    node = GegluNode(width, torch.float32)
    grid = -(-rows // node.block_rows(90, 1)), node.blocks(90, 1)
    launch(node.source(90, 1), grid, x, rows, width, y)
    wanted = geglu.reference(x, None)
    assert (y - wanted).abs().max() <= 1e-5 * wanted.abs().max()
