"""What the fused operators' nodes mean, as ONNX functions: float32 inside, y of x's type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx import parser

from .fused_nodes import ATTRIBUTES, DOMAIN, INPUTS, OPSET, PLUGIN

if TYPE_CHECKING:
    import onnx

_FLAT = """
    rows_and_channels_and_rest = Constant <value_ints = [0, 0, -1]> ()
    x_flat = Reshape (x, rows_and_channels_and_rest)
    x_float = Cast <to = 1> (x_flat)
"""

_SUM = """
    embedding_float = Cast <to = 1> (embedding)
    last = Constant <value_ints = [2]> ()
    embedding_column = Unsqueeze (embedding_float, last)
    hidden = Add (x_float, embedding_column)
"""

_NO_SUM = """
    hidden = Identity (x_float)
"""

_NORM = """
    group_count = Constant <value_int : int = @groups> ()
    one = Constant <value_ints = [1]> ()
    zero = Constant <value_ints = [0]> ()
    rest = Constant <value_ints = [-1]> ()
    group_counts = Reshape (group_count, one)
    grouped_shape = Concat <axis = 0> (zero, group_counts, rest)
    grouped = Reshape (hidden, grouped_shape)
    within_group = Constant <value_ints = [2]> ()
    mean = ReduceMean <keepdims = 1> (grouped, within_group)
    centred = Sub (grouped, mean)
    squares = Mul (centred, centred)
    variance = ReduceMean <keepdims = 1> (squares, within_group)
    epsilon = Constant <value_float : float = @eps> ()
    shifted_variance = Add (variance, epsilon)
    deviation = Sqrt (shifted_variance)
    normal_groups = Div (centred, deviation)
    flat_shape = Shape (x_flat)
    normal = Reshape (normal_groups, flat_shape)
    weight_float = Cast <to = 1> (weight)
    bias_float = Cast <to = 1> (bias)
    column = Constant <value_ints = [-1, 1]> ()
    weight_column = Reshape (weight_float, column)
    bias_column = Reshape (bias_float, column)
    scaled = Mul (normal, weight_column)
    affine = Add (scaled, bias_column)
    silu_number = Constant <value_int : int = @silu> ()
    with_silu = Cast <to = 9> (silu_number)
    whole = Constant <value_float = 1.0> ()
    sigmoid = Sigmoid (affine)
    gate = Where (with_silu, sigmoid, whole)
    y_float = Mul (affine, gate)
    y_flat = CastLike (y_float, x)
    x_shape = Shape (x)
    y = Reshape (y_flat, x_shape)
"""

_GEGLU = """
    hidden, gate = Split <axis = -1, num_outputs = 2> (x)
    hidden_float = Cast <to = 1> (hidden)
    gate_float = Cast <to = 1> (gate)
    root_half = Constant <value_float = 0.70710678118654752> ()
    half = Constant <value_float = 0.5> ()
    one = Constant <value_float = 1.0> ()
    standard = Mul (gate_float, root_half)
    error = Erf (standard)
    error_and_one = Add (error, one)
    half_gate = Mul (gate_float, half)
    gelu = Mul (half_gate, error_and_one)
    y_float = Mul (hidden_float, gelu)
    y = CastLike (y_float, x)
"""

_BODIES = {"GroupNormSiLU": _FLAT + _NO_SUM + _NORM, "AddGroupNormSiLU": _FLAT + _SUM + _NORM, "GEGLU": _GEGLU}


def function_body(op_type: str) -> onnx.FunctionProto:
    """The function of an op type of `fused_nodes`; the plugin's attributes are declared, so that nodes may have them.

    Raises:
        KeyError: If there is no such op type.
    """
    attributes = ", ".join([*ATTRIBUTES[op_type], *PLUGIN])
    return parser.parse_function(
        f'<opset_import: ["" : {OPSET}], domain: "{DOMAIN}">\n'
        f"{op_type} <{attributes}> ({', '.join(INPUTS[op_type])}) => (y) {{{_BODIES[op_type]}}}"
    )


def add_function_bodies(model: ir.Model) -> None:
    """Adds the functions of those op types that a finished model uses. Before it is finished they would be inlined."""
    for op_type in sorted({node.op_type for node in model.graph if node.domain == DOMAIN}):
        function = ir.serde.deserialize_function(function_body(op_type))
        model.functions[function.identifier()] = function
