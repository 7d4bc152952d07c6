"""This project's operators as plugins of TensorRT: norms, with SiLU and a sum before them or without, and `GEGLU`.

They are compiled ahead of time: an engine holds their PTX and needs neither Python nor Triton to run. ONNX files whose
nodes carry the attribute `plugin_namespace` get them wherever they are registered, and else their function bodies.

TensorRT reads the annotations of what it is given here as types: no `from __future__ import annotations` in this file.
Of a node it passes all attributes, in this order, to the functions that describe and implement it.
"""

import importlib
from typing import Any

from ...kernels.triton_language import require_triton
from ...python_backends.tensorrt.flavours import TENSORRT
from .plugin_kernels import GegluNode, GroupNormNode, compiled, tactics

NAMESPACE = "swiftdiffusion"
NORMS = ("GroupNorm", "GroupNormSiLU")
ADD_NORMS = ("AddGroupNorm", "AddGroupNormSiLU")
OPERATORS = (*NORMS, *ADD_NORMS, "GEGLU")

_registered: dict[str, int] = {}
"""NAMESPACE → the architecture that it was registered for: TensorRT's registry is one per process, too."""


def register_plugins(architecture: int) -> None:
    """Registers the operators with TensorRT, for the rest of the process.

    Args:
        architecture: Compute capability of the GPU that the engines are for, ten times its number.

    Raises:
        TensorRTUnavailableError: Without TensorRT, or with a release that is not used.
        MissingTritonError: Without the `triton` package.
        ValueError: If they are registered for another architecture.
    """
    if (known := _registered.get(NAMESPACE)) is not None:
        if known != architecture:
            raise ValueError(f"plugins are registered for sm_{known} in this process; sm_{architecture} needs another")
        return
    TENSORRT.require()
    importlib.import_module("numpy.typing")  # which TensorRT 11.4 uses and does not import
    require_triton("compiling plugins for TensorRT")
    for name in NORMS:
        _register_group_norm(name, architecture)
    for name in ADD_NORMS:
        _register_add_group_norm(name, architecture)
    _register_geglu(architecture)
    _registered[NAMESPACE] = architecture


def _register_group_norm(operator: str, architecture: int) -> None:
    import tensorrt.plugin as trtp

    name, silu = f"{NAMESPACE}::{operator}", operator.endswith("SiLU")

    @trtp.register(name)
    def describe(
        x: trtp.TensorDesc, weight: trtp.TensorDesc, bias: trtp.TensorDesc, groups: int, eps: float
    ) -> trtp.TensorDesc:
        return x.like()

    @trtp.autotune(name)
    def choose(
        x: trtp.TensorDesc, weight: trtp.TensorDesc, bias: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]
    ) -> list[trtp.AutoTuneCombination]:
        return _group_norm_choices([x, weight, bias], architecture)

    @trtp.aot_impl(name)
    def implement(
        x: trtp.TensorDesc,
        weight: trtp.TensorDesc,
        bias: trtp.TensorDesc,
        groups: int,
        eps: float,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        return _group_norm(x, groups, eps, silu, False, architecture, tactic)


def _register_add_group_norm(operator: str, architecture: int) -> None:
    import tensorrt.plugin as trtp

    name, silu = f"{NAMESPACE}::{operator}", operator.endswith("SiLU")

    @trtp.register(name)
    def describe(
        x: trtp.TensorDesc,
        embedding: trtp.TensorDesc,
        weight: trtp.TensorDesc,
        bias: trtp.TensorDesc,
        groups: int,
        eps: float,
    ) -> trtp.TensorDesc:
        return x.like()

    @trtp.autotune(name)
    def choose(
        x: trtp.TensorDesc,
        embedding: trtp.TensorDesc,
        weight: trtp.TensorDesc,
        bias: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        return _group_norm_choices([x, embedding, weight, bias], architecture)

    @trtp.aot_impl(name)
    def implement(
        x: trtp.TensorDesc,
        embedding: trtp.TensorDesc,
        weight: trtp.TensorDesc,
        bias: trtp.TensorDesc,
        groups: int,
        eps: float,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        return _group_norm(x, groups, eps, silu, True, architecture, tactic)


def _register_geglu(architecture: int) -> None:
    import tensorrt.plugin as trtp

    name = f"{NAMESPACE}::GEGLU"

    @trtp.register(name)
    def describe(x: trtp.TensorDesc) -> trtp.TensorDesc:
        y = x.like()
        y.shape_expr[-1] = x.shape_expr[-1] // 2
        return y

    @trtp.autotune(name)
    def choose(x: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]) -> list[trtp.AutoTuneCombination]:
        kinds = list(range(1, len(tactics("geglu", architecture)) + 1))
        return [trtp.AutoTuneCombination(", ".join(2 * [_type_name(x)]), "LINEAR", kinds)]

    @trtp.aot_impl(name)
    def implement(
        x: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc], tactic: int
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        node = GegluNode(_fixed(x, x.ndim - 1) // 2, _torch_type(x))
        kernel = compiled(node, architecture, tactic)
        rows = _product(x, 0, x.ndim - 1)
        launch = trtp.KernelLaunchParams(
            grid_x=trtp.cdiv(rows, node.block_rows(architecture, tactic)),
            grid_y=node.blocks(architecture, tactic),
            block_x=kernel.threads,
            shared_mem=kernel.shared_memory,
        )
        integers = trtp.SymIntExprs.from_tuple((trtp.SymInt32(rows), trtp.SymInt32(node.width)))
        return kernel.name, kernel.plain_ptx, launch, integers


def _group_norm_choices(inputs: list[Any], architecture: int) -> list[Any]:
    """Types as the network has them; layouts that the kernel knows, where channels-last has no padding."""
    import tensorrt.plugin as trtp

    x = inputs[0]
    types = ", ".join(_type_name(tensor) for tensor in (*inputs, x))
    kinds = list(range(1, len(tactics("group_norm_silu", architecture)) + 1))
    layouts = ["LINEAR"]
    if x.ndim == 4:
        if _type_name(x) == "FP32":
            layouts.append("HWC")
        elif x.shape[1] > 0 and x.shape[1] % 8 == 0:
            layouts.append("HWC8")
    flat = (len(inputs) - 1) * ["LINEAR"]
    return [trtp.AutoTuneCombination(types, ", ".join([of_x, *flat, of_x]), kinds) for of_x in layouts]


def _group_norm(
    x: Any, groups: int, eps: float, silu: bool, embedding: bool, architecture: int, tactic: int
) -> tuple[str, str, Any, Any]:
    """Kernel, launch and integers of a GroupNorm."""
    import tensorrt as trt
    import tensorrt.plugin as trtp

    largest = x.shape.max if x.shape.is_dynamic else tuple(x.shape)
    pixels = 1
    for side in largest[2:]:
        pixels *= side
    node = GroupNormNode(
        channels=_fixed(x, 1),
        pixels=pixels,
        pixels_vary=any(side < 0 for side in tuple(x.shape)[2:]),
        groups=groups,
        eps=eps,
        silu=silu,
        embedding=embedding,
        dtype=_torch_type(x),
        channels_last=x.format != trt.TensorFormat.LINEAR,
    )
    kernel = compiled(node, architecture, tactic)
    launch = trtp.KernelLaunchParams(
        grid_x=node.blocks(architecture, tactic),
        grid_y=x.shape_expr[0],
        block_x=kernel.threads,
        shared_mem=kernel.shared_memory,
    )
    integers = trtp.SymIntExprs.from_tuple((trtp.SymInt32(node.channels), trtp.SymInt32(_product(x, 2, x.ndim))))
    return kernel.name, kernel.plain_ptx, launch, integers


def _product(x: Any, start: int, end: int) -> Any:
    """Of dimensions from `start` to `end`, as an expression."""
    product = x.shape_expr[start]
    for index in range(start + 1, end):
        product = product * x.shape_expr[index]
    return product


def _fixed(x: Any, index: int) -> int:
    """A dimension that has to be the same in all profiles.

    Raises:
        ValueError: If it is not.
    """
    size = int(x.shape[index])
    if size < 1:
        raise ValueError(f"dimension {index} of {tuple(x.shape)} varies; plugins need it to be fixed in the ONNX file")
    return size


def _type_name(x: Any) -> str:
    """As TensorRT writes it in combinations."""
    import tensorrt as trt

    names = {trt.DataType.FLOAT: "FP32", trt.DataType.HALF: "FP16", trt.DataType.BF16: "BF16"}
    if x.dtype not in names:
        raise ValueError(f"a tensor of a plugin is {x.dtype}; allowed: FLOAT, HALF, BF16")
    return names[x.dtype]


def _torch_type(x: Any) -> Any:
    import torch

    return {"FP32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16}[_type_name(x)]
