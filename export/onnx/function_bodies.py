"""What the fused operators' nodes mean, as ONNX functions: float32 inside, y of x's type.

A norm's function has two forms, which compute the same and which TensorRT makes different kernels of: means and
variances step by step, or ONNX' own `InstanceNormalization` over the groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx import parser

from .fused_nodes import ATTRIBUTES, DOMAIN, INPUTS, OPSET, PLUGIN

if TYPE_CHECKING:
    import onnx

REDUCE, INSTANCE = NORM_FORMS = ("reduce", "instance")

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

_GROUPS = """
    group_count = Constant <value_int : int = @groups> ()
    one = Constant <value_ints = [1]> ()
    zero = Constant <value_ints = [0]> ()
    rest = Constant <value_ints = [-1]> ()
    group_counts = Reshape (group_count, one)
    grouped_shape = Concat <axis = 0> (zero, group_counts, rest)
    grouped = Reshape (hidden, grouped_shape)
"""

_NORMALISED = {
    REDUCE: """
    within_group = Constant <value_ints = [2]> ()
    mean = ReduceMean <keepdims = 1> (grouped, within_group)
    centred = Sub (grouped, mean)
    squares = Mul (centred, centred)
    variance = ReduceMean <keepdims = 1> (squares, within_group)
    epsilon = Constant <value_float : float = @eps> ()
    shifted_variance = Add (variance, epsilon)
    deviation = Sqrt (shifted_variance)
    normal_groups = Div (centred, deviation)
""",
    INSTANCE: """
    ones = ConstantOfShape <value = float[1] {1.0}> (group_counts)
    zeros = ConstantOfShape <value = float[1] {0.0}> (group_counts)
    normal_groups = InstanceNormalization <epsilon : float = @eps> (grouped, ones, zeros)
""",
}

_AFFINE = """
    flat_shape = Shape (x_flat)
    normal = Reshape (normal_groups, flat_shape)
    weight_float = Cast <to = 1> (weight)
    bias_float = Cast <to = 1> (bias)
    column = Constant <value_ints = [-1, 1]> ()
    weight_column = Reshape (weight_float, column)
    bias_column = Reshape (bias_float, column)
    scaled = Mul (normal, weight_column)
    affine = Add (scaled, bias_column)
"""

_SILU = """
    sigmoid = Sigmoid (affine)
    y_float = Mul (affine, sigmoid)
"""

_NO_SILU = """
    y_float = Identity (affine)
"""

_BACK = """
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


def function_body(op_type: str, norms: str = REDUCE) -> onnx.FunctionProto:
    """The function of an op type of `fused_nodes`; the plugin's attributes are declared, so that nodes may have them.

    Args:
        op_type: Of the node.
        norms: Of NORM_FORMS.

    Raises:
        KeyError: If there is no such op type or form.
    """
    attributes = ", ".join([*ATTRIBUTES[op_type], *PLUGIN])
    return parser.parse_function(
        f'<opset_import: ["" : {OPSET}], domain: "{DOMAIN}">\n'
        f"{op_type} <{attributes}> ({', '.join(INPUTS[op_type])}) => (y) {{{_body(op_type, norms)}}}"
    )


def _body(op_type: str, norms: str) -> str:
    if op_type == "GEGLU":
        return _GEGLU
    hidden = _SUM if op_type.startswith("Add") else _NO_SUM
    end = _SILU if op_type.endswith("SiLU") else _NO_SILU
    return "".join((_FLAT, hidden, _GROUPS, _NORMALISED[norms], _AFFINE, end, _BACK))


def add_function_bodies(model: ir.Model, norms: str) -> None:
    """Adds the functions of those op types that a finished model uses. Before it is finished they would be inlined."""
    for op_type in sorted({node.op_type for node in model.graph if node.domain == DOMAIN}):
        function = ir.serde.deserialize_function(function_body(op_type, norms))
        model.functions[function.identifier()] = function
