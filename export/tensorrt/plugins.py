"""This project's operators as plugins of TensorRT: norms, with SiLU and a sum before them or without, and `GEGLU`.

They are compiled ahead of time: an engine holds their PTX and needs neither Python nor Triton to run. ONNX files whose
nodes carry the attribute `plugin_namespace` get them wherever they are registered, and else their function bodies.
"""

from __future__ import annotations

import importlib
import math
from functools import partial, reduce
from inspect import Parameter, Signature
from operator import mul
from typing import TYPE_CHECKING, Any

import torch

from ...kernels.kernel_source import TYPES
from ...kernels.triton_language import require_triton
from ...python_backends.tensorrt.flavours import TENSORRT
from .plugin_kernels import GegluNode, GroupNormNode, compiled, tactics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NAMESPACE = "swiftdiffusion"
NORMS = ("GroupNorm", "GroupNormSiLU", "AddGroupNorm", "AddGroupNormSiLU")
OPERATORS = (*NORMS, "GEGLU")

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
        inputs = ("x", *(("embedding",) if name.startswith("Add") else ()), "weight", "bias")
        implement = partial(_group_norm, architecture, name.endswith("SiLU"))
        choose = partial(_choices, "group_norm_silu", architecture)
        _register(name, inputs, {"groups": int, "eps": float}, _like_x, choose, implement)
    choose, implement = partial(_choices, "geglu", architecture), partial(_geglu, architecture)
    _register("GEGLU", ("x",), {}, _half_of_x, choose, implement)
    _registered[NAMESPACE] = architecture


def _register(
    operator: str,
    inputs: tuple[str, ...],
    attributes: dict[str, type],
    describe: Callable[..., Any],
    choose: Callable[..., list[Any]],
    implement: Callable[..., tuple[str, str, Any, Any]],
) -> None:
    """Gives TensorRT the three functions of an operator, with signatures: it reads there what a node has and passes.

    Args:
        operator: Its name.
        inputs: Names of the tensors, which all three take first.
        attributes: Name → type; `describe` takes them by name, `implement` in this order.
        describe: To the output.
        choose: With the outputs, to types, layouts and tactics.
        implement: With the attributes, the outputs and a tactic, to kernel, PTX, launch and integers.
    """
    import tensorrt.plugin as trtp

    def signed(function: Callable[..., Any], taken: Mapping[str, Any], given: Any) -> Callable[..., Any]:
        made = partial(function)
        names = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in taken.items()]
        made.__signature__ = Signature(names, return_annotation=given)  # type: ignore[attr-defined]
        return made

    name = f"{NAMESPACE}::{operator}"
    tensors, outputs = dict.fromkeys(inputs, trtp.TensorDesc), {"outputs": tuple[trtp.TensorDesc]}
    kernel = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
    trtp.register(name)(signed(describe, tensors | attributes, trtp.TensorDesc))
    trtp.autotune(name)(signed(choose, tensors | outputs, list[trtp.AutoTuneCombination]))
    trtp.aot_impl(name)(signed(implement, tensors | attributes | outputs | {"tactic": int}, kernel))


def _like_x(x: Any, *_: Any, **__: Any) -> Any:
    return x.like()


def _half_of_x(x: Any) -> Any:
    y = x.like()
    y.shape_expr[-1] = x.shape_expr[-1] // 2
    return y


def _choices(op: str, architecture: int, *tensors: Any) -> list[Any]:
    """Types as the network has them; layouts that the kernel knows, where channels-last has no padding."""
    import tensorrt.plugin as trtp

    x, *others, _outputs = tensors
    name = _type_name(x)
    layouts = ["LINEAR"]
    if op == "group_norm_silu" and x.ndim == 4:
        if name == "FP32":
            layouts.append("HWC")
        elif x.shape[1] > 0 and x.shape[1] % 8 == 0:
            layouts.append("HWC8")
    types = ", ".join([name, *(_type_name(tensor) for tensor in others), name])
    flat = len(others) * ["LINEAR"]
    kinds = list(range(1, len(tactics(op, architecture)) + 1))
    return [trtp.AutoTuneCombination(types, ", ".join([of_x, *flat, of_x]), kinds) for of_x in layouts]


def _group_norm(architecture: int, silu: bool, *arguments: Any) -> tuple[str, str, Any, Any]:
    import tensorrt as trt

    x, *embedding, _weight, _bias, groups, eps, _outputs, tactic = arguments
    largest = x.shape.max if x.shape.is_dynamic else tuple(x.shape)
    node = GroupNormNode(
        channels=_fixed(x, 1),
        pixels=math.prod(largest[2:]),
        pixels_vary=any(side < 0 for side in tuple(x.shape)[2:]),
        groups=groups,
        eps=eps,
        silu=silu,
        embedding=bool(embedding),
        dtype=_torch_type(x),
        channels_last=x.format != trt.TensorFormat.LINEAR,
    )
    rows, _, *sides = x.shape_expr
    grid = node.blocks(architecture, tactic), rows
    return _launch(node, architecture, tactic, grid, (node.channels, reduce(mul, sides)))


def _geglu(architecture: int, x: Any, _outputs: Any, tactic: int) -> tuple[str, str, Any, Any]:
    import tensorrt.plugin as trtp

    node = GegluNode(_fixed(x, x.ndim - 1) // 2, _torch_type(x))
    *sides, _ = x.shape_expr
    rows = reduce(mul, sides)
    grid = trtp.cdiv(rows, node.block_rows(architecture, tactic)), node.blocks(architecture, tactic)
    return _launch(node, architecture, tactic, grid, (rows, node.width))


def _launch(
    node: GroupNormNode | GegluNode, architecture: int, tactic: int, grid: tuple[Any, Any], integers: tuple[Any, Any]
) -> tuple[str, str, Any, Any]:
    import tensorrt.plugin as trtp

    kernel = compiled(node, architecture, tactic)
    launch = trtp.KernelLaunchParams(*grid, block_x=kernel.threads, shared_mem=kernel.shared_memory)
    after_inputs = trtp.SymIntExprs.from_tuple([trtp.SymInt32(integer) for integer in integers])
    return kernel.name, kernel.plain_ptx, launch, after_inputs


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
    """As TensorRT writes it in combinations, which is as Triton does, in capitals."""
    return TYPES[_torch_type(x)].upper()


def _torch_type(x: Any) -> torch.dtype:
    import tensorrt as trt

    types = {trt.DataType.FLOAT: torch.float32, trt.DataType.HALF: torch.float16, trt.DataType.BF16: torch.bfloat16}
    if x.dtype not in types:
        raise ValueError(f"a tensor of a plugin is {x.dtype}; allowed: FLOAT, HALF, BF16")
    return types[x.dtype]
