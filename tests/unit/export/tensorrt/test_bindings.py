"""The plugins through TensorRT's own Python code: registered, asked for layouts and tactics, and for kernels.

Needs the package `tensorrt`, and neither a GPU nor a builder: what a builder would do is done here, with dimensions
that are plain numbers behind TensorRT's interface of symbolic ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt", reason="needs TensorRT, which NVIDIA's package index has")
pytest.importorskip("triton", reason="needs the Triton language: pip install 'swiftdiffusion[kernels]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'swiftdiffusion[onnx]'")

import tensorrt as trt
import tensorrt.plugin as trtp
from tensorrt.plugin import _lib, _tensor

from swiftdiffusion.export.onnx.fused_nodes import ATTRIBUTES, INPUTS
from swiftdiffusion.export.tensorrt import plugins
from swiftdiffusion.kernels.configurations import configuration
from swiftdiffusion.python_backends.tensorrt.flavours import TENSORRT

ARCHITECTURE = 90
LINEAR, HWC, HWC8 = trt.TensorFormat.LINEAR, trt.TensorFormat.HWC, trt.TensorFormat.HWC8
HALF, FLOAT = trt.DataType.HALF, trt.DataType.FLOAT


class Dimension(trt.IDimensionExpr):
    """A number behind the interface of an expression; made by `dimension`, since TensorRT gives it no constructor."""

    value: int

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value


def dimension(value: int) -> Dimension:
    made = Dimension.__new__(Dimension)
    made.value = value
    return made


class Builder:
    """`IExprBuilder`, for numbers."""

    def constant(self, value: int) -> Dimension:
        return dimension(value)

    def operation(self, kind: Any, first: Dimension, second: Dimension) -> Dimension:
        operations = trt.DimensionOperation
        a, b = first.value, second.value
        return dimension(
            {
                operations.SUM: a + b,
                operations.SUB: a - b,
                operations.PROD: a * b,
                operations.FLOOR_DIV: a // b if b else 0,
                operations.CEIL_DIV: -(-a // b) if b else 0,
                operations.MAX: max(a, b),
                operations.MIN: min(a, b),
            }[kind]
        )


@pytest.fixture(autouse=True)
def _numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    plugins.register_plugins(ARCHITECTURE)
    monkeypatch.setattr(trt, "DimsExprs", lambda length: [None] * length)
    monkeypatch.setattr(trtp.SymInt32, "__call__", lambda expression: expression._expr.value)
    yield
    _tensor.SymIntExpr._exprBuilder = None


def create(name: str, **attributes: float) -> Any:
    creator = trt.get_plugin_registry().get_creator(name, "1", plugins.NAMESPACE)
    kinds = {int: (np.int64, trt.PluginFieldType.INT64), float: (np.float64, trt.PluginFieldType.FLOAT64)}
    fields = [
        trt.PluginField(key, np.array([value], kinds[type(value)][0]), kinds[type(value)][1])
        for key, value in attributes.items()
    ]
    return creator.create_plugin(
        name,
        plugins.NAMESPACE,
        trt.PluginFieldCollection(fields),
        trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )


def described(shape: tuple[int, ...], dtype: Any, layout: Any = LINEAR, varying: frozenset[int] = frozenset()) -> Any:
    made = trt.DynamicPluginTensorDesc()
    desc = trt.PluginTensorDesc()
    dims = [-1 if axis in varying else side for axis, side in enumerate(shape)]
    desc.dims, desc.type, desc.format = trt.Dims(dims), dtype, layout
    made.desc = desc
    made.min = made.opt = made.max = trt.Dims(shape)
    return made


def output_shape(plugin: Any, shapes: list[tuple[int, ...]], dtype: Any) -> list[int]:
    plugin.get_output_data_types([dtype] * len(shapes), [len(shape) for shape in shapes])
    (out,) = plugin.get_output_shapes([[dimension(side) for side in shape] for shape in shapes], [], Builder())
    return [expression.value for expression in out]


def combinations(plugin: Any, shapes: list[tuple[int, ...]], dtype: Any) -> list[list[Any]]:
    tensors = [described(shape, dtype) for shape in (*shapes, shapes[0])]
    found = plugin.get_supported_format_combinations(tensors, len(shapes))
    size = len(tensors)
    return [[each.format for each in found[start : start + size]] for start in range(0, len(found), size)]


def launch(
    plugin: Any,
    shapes: list[tuple[int, ...]],
    dtype: Any,
    layouts: list[Any],
    tactic: int,
    varying: frozenset[int] = frozenset(),
) -> Any:
    """The kernel and its launch; in x and y the axes `varying` have no fixed size."""
    sizes = (*shapes, shapes[0])
    tensors = [
        described(shape, dtype, layout, varying if shape == shapes[0] else frozenset())
        for shape, layout in zip(sizes, layouts, strict=True)
    ]
    plugin.configure_plugin(tensors[:-1], tensors[-1:])
    assert tactic in plugin.get_valid_tactics()
    plugin.set_tactic(tactic)
    given, integers = SimpleNamespace(), Integers()
    plugin.get_launch_params(None, tensors, len(shapes), given, integers, Builder())
    name, ptx = plugin.get_kernel([each.desc for each in tensors[:-1]], [tensors[-1].desc])
    return SimpleNamespace(**vars(given), integers=integers.values, name=name, ptx=ptx.decode())


class Integers:
    """`ISymExprs`: what follows the inputs' pointers."""

    def __init__(self) -> None:
        self.values: list[int] = []

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "nbSymExprs":
            self.values.extend([0] * value)
        else:
            super().__setattr__(name, value)

    def __setitem__(self, index: int, value: int) -> None:
        self.values[index] = value


def parameters(kernel: Any) -> list[str]:
    head = kernel.ptx.partition(f".entry {kernel.name}(")[2].partition(")")[0]
    return re.findall(r"\.param \.(\w+)", head)


FLAT = [(320,), (320,)]
NORMS = {
    "GroupNorm": [(2, 320, 64, 64), *FLAT],
    "GroupNormSiLU": [(2, 320, 64, 64), *FLAT],
    "AddGroupNorm": [(2, 320, 64, 64), (2, 320), *FLAT],
    "AddGroupNormSiLU": [(2, 320, 64, 64), (2, 320), *FLAT],
}
"""Operator → shapes of its inputs."""


def norm_kernel(name: str, tactic: int = 1) -> Any:
    plugin = create(name, groups=32, eps=1e-5)
    output_shape(plugin, NORMS[name], HALF)
    combinations(plugin, NORMS[name], HALF)
    return launch(plugin, NORMS[name], HALF, [LINEAR] * (len(NORMS[name]) + 1), tactic)


def test_they_are_registered_once_per_process() -> None:
    plugins.register_plugins(ARCHITECTURE)
    with pytest.raises(ValueError, match=r"sm_90.*sm_80"):
        plugins.register_plugins(80)


@pytest.mark.parametrize("name", INPUTS)
def test_they_take_what_the_nodes_of_onnx_files_have(name: str) -> None:
    assert set(plugins.OPERATORS) == set(INPUTS)
    registered = _lib.QDP_REGISTRY[f"{plugins.NAMESPACE}::{name}"]
    kinds = {"INT": int, "FLOAT": float}
    assert tuple(registered.input_tensor_names) == INPUTS[name]
    assert list(registered.input_attrs.items()) == [(key, kinds[kind]) for key, kind in ATTRIBUTES[name].items()]


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(("dtype", "channels_last"), [(HALF, HWC8), (trt.DataType.BF16, HWC8), (FLOAT, HWC)])
def test_group_norm(name: str, dtype: Any, channels_last: Any) -> None:
    plugin, shapes = create(name, groups=32, eps=1e-5), NORMS[name]
    assert output_shape(plugin, shapes, dtype) == [2, 320, 64, 64]
    flat = [LINEAR] * (len(shapes) - 1)
    layouts = combinations(plugin, shapes, dtype)
    assert layouts == [[layout, *flat, layout] for layout in (LINEAR, channels_last)]
    for of_x in layouts:
        kernel = launch(plugin, shapes, dtype, of_x, 1)
        assert kernel.integers == [320, 64 * 64]
        assert parameters(kernel) == ["u64"] * len(shapes) + ["u32"] * 2 + ["u64"]
        assert (kernel.grid_y, kernel.grid_z, kernel.block_y, kernel.block_z) == (2, 1, 1, 1)
        assert kernel.block_x == 32 * configuration("group_norm_silu", ARCHITECTURE)["num_warps"]
        assert 1 <= kernel.grid_x <= 32
        assert ".version 8.7" in kernel.ptx
        assert ".target sm_90a" in kernel.ptx


def test_channels_that_would_be_padded_have_one_layout() -> None:
    shapes: list[tuple[int, ...]] = [(1, 60, 8, 8), (60,), (60,)]
    plugin = create("GroupNormSiLU", groups=6, eps=1e-5)
    output_shape(plugin, shapes, HALF)
    assert combinations(plugin, shapes, HALF) == [[LINEAR] * 4]


def test_three_dimensions() -> None:
    shapes: list[tuple[int, ...]] = [(1, 64, 81), (64,), (64,)]
    plugin = create("GroupNormSiLU", groups=8, eps=1e-6)
    output_shape(plugin, shapes, HALF)
    assert combinations(plugin, shapes, HALF) == [[LINEAR] * 4]
    assert launch(plugin, shapes, HALF, [LINEAR] * 4, 1).integers == [64, 81]


def test_tactics_are_different_kernels() -> None:
    assert norm_kernel("GroupNormSiLU", 1).ptx != norm_kernel("GroupNormSiLU", 2).ptx


def test_norms_are_different_kernels() -> None:
    assert len({norm_kernel(name).ptx for name in NORMS}) == len(NORMS)


def test_geglu() -> None:
    shapes: list[tuple[int, ...]] = [(2, 4096, 5120)]
    plugin = create("GEGLU")
    assert output_shape(plugin, shapes, HALF) == [2, 4096, 2560]
    assert combinations(plugin, shapes, HALF) == [[LINEAR, LINEAR]]
    kernel = launch(plugin, shapes, HALF, [LINEAR, LINEAR], 1)
    assert kernel.integers == [8192, 2560]
    assert parameters(kernel) == ["u64", "u32", "u32", "u64"]
    settings = configuration("geglu", ARCHITECTURE)
    assert kernel.grid_x == 8192 // settings["block_rows"]
    assert kernel.grid_y == 2560 // settings["block_columns"]


def test_other_types_are_refused() -> None:
    plugin = create("GEGLU")
    shapes: list[tuple[int, ...]] = [(2, 16, 64)]
    output_shape(plugin, shapes, trt.DataType.INT32)
    with pytest.raises(ValueError, match="INT32; allowed: FLOAT, HALF, BF16"):
        combinations(plugin, shapes, trt.DataType.INT32)


def test_a_channel_count_that_varies_is_refused() -> None:
    shapes: list[tuple[int, ...]] = [(2, -1, 8, 8), (8,), (8,)]
    plugin = create("GroupNormSiLU", groups=8, eps=1e-5)
    output_shape(plugin, shapes, HALF)
    combinations(plugin, shapes, HALF)
    with pytest.raises(ValueError, match=r"dimension 1 of .* varies"):
        launch(plugin, shapes, HALF, [LINEAR] * 4, 1)


def test_one_kernel_for_sizes_that_vary() -> None:
    """Nothing of the profile at hand may specialise it: TensorRT keeps one kernel for all of them."""
    kernels = []
    for side in (64, 24):
        shapes = [(2, 320, side, side), *FLAT]
        plugin = create("GroupNormSiLU", groups=32, eps=1e-5)
        output_shape(plugin, shapes, HALF)
        combinations(plugin, shapes, HALF)
        kernels.append(launch(plugin, shapes, HALF, [LINEAR] * 4, 1, varying=frozenset((0, 2, 3))))
    assert kernels[0].ptx == kernels[1].ptx
    assert [kernel.integers for kernel in kernels] == [[320, 64 * 64], [320, 24 * 24]]


USED = {
    "Builder": "create_network create_builder_config create_optimization_profile build_serialized_network",
    "DataType": "FLOAT HALF BF16 INT32 INT64 BOOL UINT8",
    "ExecutionContextAllocationStrategy": "USER_MANAGED",
    "IBuilderConfig": "set_memory_pool_limit create_timing_cache set_timing_cache get_timing_cache "
    "add_optimization_profile",
    "ICudaEngine": "create_execution_context get_tensor_dtype get_tensor_mode get_tensor_name get_tensor_profile_shape "
    "get_tensor_shape num_io_tensors num_optimization_profiles",
    "IExecutionContext": "execute_async_v3 get_tensor_shape infer_shapes set_device_memory set_input_shape "
    "set_optimization_profile_async set_tensor_address update_device_memory_size_for_shapes",
    "ILogger": "ERROR INTERNAL_ERROR WARNING log",
    "INetworkDefinition": "get_input num_inputs",
    "IOptimizationProfile": "set_shape",
    "ITimingCache": "serialize",
    "MemoryPoolType": "WORKSPACE",
    "NetworkDefinitionCreationFlag": "STRONGLY_TYPED",
    "OnnxParser": "parse num_errors get_error",
    "ParserError": "desc",
    "Runtime": "deserialize_cuda_engine",
    "TensorIOMode": "INPUT",
}
"""What building and running use: releases 10.16 and 11.4 both have to have it."""


@pytest.mark.parametrize("name", USED)
def test_the_interface_is_the_one_that_is_used(name: str) -> None:
    missing = [member for member in USED[name].split() if not hasattr(getattr(trt, name), member)]
    assert not missing


def test_errors_are_logged_and_told_once() -> None:
    log = TENSORRT.log
    assert isinstance(log, trt.ILogger)
    log.log(trt.ILogger.WARNING, "not this")
    log.log(trt.ILogger.ERROR, "what went wrong")
    assert log.said() == "what went wrong"
    assert log.said() == "it does not say why"
