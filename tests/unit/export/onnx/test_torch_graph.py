"""Weights keep their names in a graph, or there is no graph."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from typer.testing import CliRunner

from swiftdiffusion.clients.cli import app
from swiftdiffusion.export.onnx import errors, torch_graph
from swiftdiffusion.export.onnx.errors import LostWeightError
from swiftdiffusion.export.onnx.graph_modules import Tensors
from swiftdiffusion.export.onnx.graph_part import GraphPart, Sizes


def two_layers() -> GraphPart:
    """Two linear layers with the same weight."""
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)).requires_grad_(False).eval()
    network.load_state_dict(network[0].state_dict(prefix="0.") | network[0].state_dict(prefix="1."))
    sizes = Sizes(2, 8, 8, 1, dynamic=False)
    return GraphPart("two", "unet", Tensors(network), network, {"x": torch.zeros(2, 3, 4)}, ["y"], sizes, "digest")


def test_equal_weights_stay_apart() -> None:
    graph = torch_graph.torch_graph(two_layers()).graph
    assert [value.name for value in graph.inputs] == ["x", "0.weight", "1.weight"]
    assert [list(value.shape) for value in graph.inputs[1:]] == [[4, 4], [4, 4]]
    products = [node for node in graph if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == 2
    assert products[0].inputs[1] is not products[1].inputs[1]


def test_a_weight_that_is_computed_into_something_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    optimise = torch_graph._optimise

    def lose(model: ir.Model) -> None:
        optimise(model)
        value = model.graph.inputs[1]
        copy = ir.Value(name="another", const_value=value.const_value)
        ir.convenience.replace_all_uses_with(value, copy)

    monkeypatch.setattr(torch_graph, "_optimise", lose)
    with pytest.raises(LostWeightError, match=r"two: 0\.weight is in the graph as \[4,4\] and used 0 times"):
        torch_graph.torch_graph(two_layers())


def test_shapes_in_words() -> None:
    sizes = Sizes(2, 16, 24, 4, dynamic=True)
    assert sizes.names((2, 4, 16, 24)) == ("rows", 4, "height", "width")
    assert sizes.names((2, 32, 4, 12)) == ("rows", 32, "height/4", "width/2")
    assert sizes.names((2, 3, 128, 192)) == ("rows", 3, "8*height", "8*width")
    assert sizes.names((2, 77, 40)) == ("rows", 77, 40)


def test_the_command_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["export-onnx", "--checkpoint", ".", "--output", "there"])
    assert result.exit_code == 2
    assert "export-onnx needs onnx and onnxscript: pip install 'swiftdiffusion[onnx]'" in result.stderr
