"""The fused operators of `kernels` as nodes of an ONNX graph, each a single node of the domain `swiftdiffusion`.

TensorRT takes such a node as a plugin if one of that name is registered and the node has `plugin_namespace`; everything
else that reads the file (and TensorRT without the plugin) computes the function body that `function_bodies` adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript import opset18
from onnxscript.values import Op, Opset

from ...kernels import geglu, group_norm_silu  # noqa: F401  they register the operators

DOMAIN = "swiftdiffusion"
DOMAIN_VERSION = 1
OPSET = 18
"""Of ONNX' own operators; TensorRT 10 and later read it."""

PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1}
"""Attributes that make TensorRT look for a plugin, compiled ahead of time, before it takes the function body."""

NORM = {"groups": "INT", "eps": "FLOAT"}
NORMS = ("GroupNorm", "GroupNormSiLU", "AddGroupNorm", "AddGroupNormSiLU")
INPUTS = {
    **{norm: ("x", *(("embedding",) if norm.startswith("Add") else ()), "weight", "bias") for norm in NORMS},
    "GEGLU": ("x",),
}
"""Op type → inputs; the output is y. x is [N, C, …] for the norms and […, 2 · D] for GEGLU, embedding [N, C]."""
ATTRIBUTES: Mapping[str, Mapping[str, str]] = dict.fromkeys(NORMS, NORM) | {"GEGLU": {}}
"""Op type → its own attributes and their types; every node has PLUGIN besides."""


def _operator(op_type: str) -> Op:
    attributes = {**ATTRIBUTES[op_type], "plugin_namespace": "STRING", "plugin_version": "STRING", "aot": "INT"}
    schema = OpSchema(
        op_type,
        DOMAIN,
        DOMAIN_VERSION,
        inputs=[OpSchema.FormalParameter(name, "T") for name in INPUTS[op_type]],
        outputs=[OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[
            OpSchema.Attribute(name, getattr(OpSchema.AttrType, kind), required=False)
            for name, kind in attributes.items()
        ],
    )
    return Op(Opset(DOMAIN, DOMAIN_VERSION), op_type, schema)


_OPERATORS = {op_type: _operator(op_type) for op_type in INPUTS}


def _group_norm_silu(
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value,
    embedding: ir.Value | None,
    groups: int,
    eps: float,
    silu: bool,
) -> Any:
    operator = _OPERATORS[f"{'Add' * (embedding is not None)}GroupNorm{'SiLU' * silu}"]
    inputs = (x, weight, bias) if embedding is None else (x, embedding, weight, bias)
    return operator(*inputs, groups=groups, eps=eps, **PLUGIN)


def _geglu_node(x: Any, bias: Any | None) -> Any:
    return _OPERATORS["GEGLU"](x if bias is None else opset18.Add(x, bias), **PLUGIN)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """`custom_translation_table` of `torch.onnx.export`: our operators in PyTorch → nodes."""
    operators = torch.ops.swiftdiffusion
    return {operators.group_norm_silu.default: _group_norm_silu, operators.geglu.default: _geglu_node}
