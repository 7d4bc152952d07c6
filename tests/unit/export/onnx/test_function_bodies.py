"""The fused operators' ONNX functions compute what the operators do."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from swiftdiffusion.export.onnx.function_bodies import NORM_FORMS, REDUCE, function_body
from swiftdiffusion.export.onnx.fused_nodes import DOMAIN, DOMAIN_VERSION, INPUTS, OPSET, PLUGIN
from swiftdiffusion.kernels import geglu, group_norm_silu

TYPES = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}
TOLERANCE = {torch.float32: 2e-5, torch.float16: 8e-3}
dtypes = st.sampled_from(sorted(TYPES, key=str))


def run(op_type: str, tensors: list[torch.Tensor], norms: str = REDUCE, **attributes: float) -> torch.Tensor:
    """A graph of one node, in ONNX Runtime."""
    kind = TYPES[tensors[0].dtype]
    node = helper.make_node(op_type, INPUTS[op_type], ["y"], domain=DOMAIN, **attributes, **PLUGIN)
    inputs = [
        helper.make_tensor_value_info(name, kind, tensor.shape)
        for name, tensor in zip(INPUTS[op_type], tensors, strict=True)
    ]
    graph = helper.make_graph(
        [node], "one", inputs, [helper.make_tensor_value_info("y", kind, [None] * tensors[0].ndim)]
    )
    model = helper.make_model(
        graph,
        functions=[function_body(op_type, norms)],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {name: tensor.numpy() for name, tensor in zip(INPUTS[op_type], tensors, strict=True)}
    (y,) = session.run(None, given)
    return torch.from_numpy(np.asarray(y))


@given(
    rows=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 8]),
    width=st.integers(1, 5),
    pixels=st.lists(st.integers(1, 7), min_size=1, max_size=2).filter(lambda sides: math.prod(sides) > 1),
    eps=st.sampled_from([1e-5, 1e-6]),
    silu=st.booleans(),
    embedded=st.booleans(),
    norms=st.sampled_from(NORM_FORMS),
    dtype=dtypes,
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40)
def test_group_norm_silu(
    rows: int,
    groups: int,
    width: int,
    pixels: list[int],
    eps: float,
    silu: bool,
    embedded: bool,
    norms: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x, embedding = tensor(rows, groups * width, *pixels), tensor(rows, groups * width) if embedded else None
    weight, bias = tensor(groups * width), tensor(groups * width)
    inputs = [x, weight, bias] if embedding is None else [x, embedding, weight, bias]
    y = run(f"{'Add' * embedded}GroupNorm{'SiLU' * silu}", inputs, norms, groups=groups, eps=eps)
    wide = [each.float() if each is not None else None for each in (x, weight, bias, embedding)]
    expected = group_norm_silu.reference(*wide, groups, eps, silu)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    width=st.integers(1, 20),
    dtype=dtypes,
    seed=st.integers(0, 2**16),
)
@settings(max_examples=15)
def test_geglu(shape: list[int], width: int, dtype: torch.dtype, seed: int) -> None:
    x = torch.randn(*shape, 2 * width, generator=torch.Generator().manual_seed(seed)).to(dtype)
    y = run("GEGLU", [x])
    assert y.dtype == dtype
    expected = geglu.reference(x.float(), None)
    torch.testing.assert_close(y.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
