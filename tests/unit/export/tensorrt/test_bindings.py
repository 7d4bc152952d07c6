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

import tensorrt as trt
import tensorrt.plugin as trtp
from tensorrt.plugin import _lib, _plugin_class, _tensor

from swiftdiffusion.export.tensorrt import plugins
from swiftdiffusion.kernels.configurations import configuration

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
    monkeypatch.setattr(_plugin_class.trt, "DimsExprs", lambda length: [None] * length)
    monkeypatch.setattr(_tensor, "SymExprImpl", lambda expression: expression._expr.value)
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


def described(shape: tuple[int, ...], dtype: Any, layout: Any = LINEAR) -> Any:
    made = trt.DynamicPluginTensorDesc()
    desc = trt.PluginTensorDesc()
    desc.dims, desc.type, desc.format = trt.Dims(shape), dtype, layout
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


def launch(plugin: Any, shapes: list[tuple[int, ...]], dtype: Any, layouts: list[Any], tactic: int) -> Any:
    tensors = [described(shape, dtype, layout) for shape, layout in zip((*shapes, shapes[0]), layouts, strict=True)]
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


GROUP_NORM = [(2, 320, 64, 64), (320,), (320,)]
ADD = [(2, 320, 64, 64), (2, 320), (320,), (320,)]


def test_they_are_registered_once_per_process() -> None:
    plugins.register_plugins(ARCHITECTURE)
    with pytest.raises(ValueError, match=r"sm_90.*sm_80"):
        plugins.register_plugins(80)
    assert {f"{plugins.NAMESPACE}::{name}" for name in plugins.OPERATORS} <= set(_lib.QDP_REGISTRY)


@pytest.mark.parametrize(("name", "shapes"), [("GroupNormSiLU", GROUP_NORM), ("AddGroupNormSiLU", ADD)])
@pytest.mark.parametrize(("dtype", "channels_last"), [(HALF, HWC8), (trt.DataType.BF16, HWC8), (FLOAT, HWC)])
def test_group_norm(name: str, shapes: list[tuple[int, ...]], dtype: Any, channels_last: Any) -> None:
    plugin = create(name, groups=32, eps=1e-5, silu=1)
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
    plugin = create("GroupNormSiLU", groups=6, eps=1e-5, silu=0)
    output_shape(plugin, shapes, HALF)
    assert combinations(plugin, shapes, HALF) == [[LINEAR] * 4]


def test_three_dimensions() -> None:
    shapes: list[tuple[int, ...]] = [(1, 64, 81), (64,), (64,)]
    plugin = create("GroupNormSiLU", groups=8, eps=1e-6, silu=0)
    output_shape(plugin, shapes, HALF)
    assert combinations(plugin, shapes, HALF) == [[LINEAR] * 4]
    assert launch(plugin, shapes, HALF, [LINEAR] * 4, 1).integers == [64, 81]


def test_tactics_are_different_kernels() -> None:
    plugin = create("GroupNormSiLU", groups=32, eps=1e-5, silu=1)
    output_shape(plugin, GROUP_NORM, HALF)
    combinations(plugin, GROUP_NORM, HALF)
    plugin.configure_plugin(*[[described((1,), HALF)] * 3, [described((1,), HALF)]])
    first, second = (launch(plugin, GROUP_NORM, HALF, [LINEAR] * 4, tactic) for tactic in (1, 2))
    assert first.ptx != second.ptx


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
    plugin = create("GroupNormSiLU", groups=8, eps=1e-5, silu=1)
    output_shape(plugin, shapes, HALF)
    combinations(plugin, shapes, HALF)
    with pytest.raises(ValueError, match=r"dimension 1 of .* varies"):
        launch(plugin, shapes, HALF, [LINEAR] * 4, 1)


def test_one_kernel_for_sizes_that_vary() -> None:
    """Nothing of the profile at hand may specialise it: TensorRT keeps one kernel for all of them."""
    kernels = []
    for side in (64, 24):
        varying = trt.DynamicPluginTensorDesc()
        desc = trt.PluginTensorDesc()
        desc.dims, desc.type, desc.format = trt.Dims((-1, 320, -1, -1)), HALF, LINEAR
        varying.desc = desc
        varying.min = varying.opt = varying.max = trt.Dims((2, 320, side, side))
        x = trtp.TensorDesc(trtp.ShapeExprs.from_tuple((trtp.ShapeExpr(),) * 4), HALF, LINEAR)
        x._shape = trtp.Shape(varying)
        kernels.append(plugins._group_norm(x, 32, 1e-5, 1, False, ARCHITECTURE, 1)[1])
    assert kernels[0] == kernels[1]


USED = {
    "Builder": "create_network create_builder_config create_optimization_profile build_serialized_network",
    "BuilderFlag": "REFIT_INDIVIDUAL",
    "DataType": "FLOAT HALF BF16 INT32 INT64 BOOL UINT8",
    "ExecutionContextAllocationStrategy": "USER_MANAGED",
    "IBuilderConfig": "set_flag set_memory_pool_limit create_timing_cache set_timing_cache get_timing_cache "
    "add_optimization_profile",
    "ICudaEngine": "create_execution_context device_memory_size_v2 get_tensor_dtype get_tensor_mode get_tensor_name "
    "get_tensor_profile_shape num_io_tensors num_optimization_profiles refittable",
    "IExecutionContext": "execute_async_v3 get_tensor_shape infer_shapes set_device_memory set_input_shape "
    "set_optimization_profile_async set_tensor_address",
    "INetworkDefinition": "get_input get_output mark_weights_refittable num_inputs num_outputs",
    "IOptimizationProfile": "set_shape",
    "ITimingCache": "serialize",
    "Logger": "WARNING",
    "MemoryPoolType": "WORKSPACE",
    "NetworkDefinitionCreationFlag": "STRONGLY_TYPED",
    "OnnxParser": "parse num_errors get_error",
    "Refitter": "get_missing_weights get_weights_prototype refit_cuda_engine_async set_named_weights",
    "Runtime": "deserialize_cuda_engine",
    "TensorIOMode": "INPUT",
    "TensorLocation": "DEVICE",
    "Weights": "dtype size",
}
"""What building, running and refitting use: releases 10.16 and 11.4 both have to have it."""


@pytest.mark.parametrize("name", USED)
def test_the_interface_is_the_one_that_is_used(name: str) -> None:
    missing = [member for member in USED[name].split() if not hasattr(getattr(trt, name), member)]
    assert not missing
