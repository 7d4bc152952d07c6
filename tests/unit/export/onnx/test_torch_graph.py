"""Weights keep their names in a graph, or there is no graph."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from swiftdiffusion.clients.cli import app
from swiftdiffusion.export.onnx import command, torch_graph
from swiftdiffusion.export.onnx.graph_modules import Tensors
from swiftdiffusion.export.onnx.graph_part import GraphPart, Sizes
from swiftdiffusion.export.onnx.torch_graph import LostWeightError
from swiftdiffusion.python_backends.tensorrt.weights import MappedWeight


def two_layers() -> GraphPart:
    """Two linear layers with the same weight."""
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)).requires_grad_(False).eval()
    network.load_state_dict(network[0].state_dict(prefix="0.") | network[0].state_dict(prefix="1."))
    sizes = Sizes(2, 8, 8, 1, dynamic=False)
    return GraphPart("two", "unet", Tensors(network), network, {"x": torch.zeros(2, 3, 4)}, ["y"], sizes)


def test_equal_weights_stay_apart() -> None:
    graph = torch_graph.torch_graph(two_layers())
    assert graph.weights == {
        name: MappedWeight(initializer=f"{name}.weight.T", transposed=True, shape=(4, 4)) for name in "01"
    }


def test_a_weight_without_its_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_graph, "_fold_transposes", lambda graph: None)
    with pytest.raises(LostWeightError, match=r"two: 0\.weight \[4, 4\] is in the graph as nothing that has its name"):
        torch_graph.torch_graph(two_layers())


def test_shapes_in_words() -> None:
    sizes = Sizes(2, 16, 24, 4, dynamic=True)
    assert sizes.names((2, 4, 16, 24)) == ("rows", 4, "height", "width")
    assert sizes.names((2, 32, 4, 12)) == ("rows", 32, "height/4", "width/2")
    assert sizes.names((2, 3, 128, 192)) == ("rows", 3, "8*height", "8*width")
    assert sizes.names((2, 77, 40)) == ("rows", 77, 40)


def test_the_command_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["export-onnx", "--checkpoint", ".", "--output", "there"])
    assert result.exit_code == 2
    assert 'export-onnx needs onnx and onnxscript: pip install "swiftdiffusion[onnx]"' in result.stderr
