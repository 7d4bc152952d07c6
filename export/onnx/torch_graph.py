"""A module of PyTorch as an ONNX model whose parameters keep their names."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir
import onnxscript.optimizer
import onnxscript.rewriter
import torch
from onnx_ir.passes import common

from ...python_backends.lora.files.modules import adaptable_weights
from ...python_backends.tensorrt.weights import TRANSPOSED, MappedWeight, WeightMap
from .function_bodies import add_function_bodies
from .fused_nodes import OPSET, translations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .graph_part import GraphPart


class LostWeightError(RuntimeError):
    """A weight that LoRAs adapt is no initializer of the graph that computes with it; the message says which."""


@dataclass(frozen=True)
class TorchGraph:
    """A graph and where it has its weights.

    Attributes:
        model: Parameters are initializers under the names of the network's state dict; a weight of which the graph
            wants only the transpose is an initializer `NAME.T`. The fused operators are single nodes.
        weights: Of every linear layer and convolution that the graph computes with.
    """

    model: ir.Model
    weights: WeightMap


def torch_graph(part: GraphPart) -> TorchGraph:
    """The graph of a part.

    Raises:
        LostWeightError: If the exporter has folded a weight into something else.
    """
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            part.module,
            tuple(part.inputs.values()),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            opset_version=OPSET,
            dynamic_shapes=part.dynamic_shapes,
            custom_translation_table=translations(),
            optimize=False,
            verbose=False,
        )
    assert program is not None and program.exported_program is not None  # it is None where a file is written
    model, prefix = program.model, _prefix(part)
    _fold_transposes(model.graph)
    _optimise(model)
    for value in list(model.graph.initializers.values()):
        if value.name is not None:
            value.name = value.name.removeprefix(prefix)
    _name_dimensions(model.graph, part)
    add_function_bodies(model)
    used = {name.removeprefix(prefix) for name in _used_parameters(program.exported_program)}
    return TorchGraph(model, _weight_map(model.graph, part, used))


def _prefix(part: GraphPart) -> str:
    """What the wrapping modules put before the names of the network's parameters."""
    return next(f"{name}." for name, module in part.module.named_modules() if module is part.network)


def _used_parameters(program: torch.export.ExportedProgram) -> set[str]:
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    names = program.graph_signature.inputs_to_parameters
    return {name for node, name in names.items() if node in used}


def _weight_map(graph: ir.Graph, part: GraphPart, used: set[str]) -> WeightMap:
    places = {}
    for module, weight in adaptable_weights(part.network).items():
        name = f"{module}.weight"
        if name not in used:
            continue
        found = [each for each in (name, f"{name}{TRANSPOSED}") if each in graph.initializers]
        if len(found) != 1:
            raise LostWeightError(
                f"{part.name}: {name} {list(weight.shape)} is in the graph as {found or 'nothing that has its name'}; "
                f"wanted: one initializer, {name} or {name}{TRANSPOSED}"
            )
        place = MappedWeight(initializer=found[0], transposed=found[0] != name, shape=tuple(weight.shape))
        shape = graph.initializers[found[0]].shape
        if shape is None or tuple(shape) != place.initializer_shape:
            raise LostWeightError(f"{part.name}: {found[0]} is {shape}; wanted: {list(place.initializer_shape)}")
        places[module] = place
    return places


def _fold_transposes(graph: ir.Graph) -> None:
    """Replaces the transposes of parameters by initializers that have a name; the optimiser's would have none."""
    for node in list(graph):
        if node.op_type != "Transpose" or node.inputs[0] is None or node.inputs[0].name not in graph.initializers:
            continue
        weight = node.inputs[0]
        if node.attributes["perm"].as_ints() != (1, 0):
            continue
        name = f"{weight.name}{TRANSPOSED}"
        if name not in graph.initializers:
            graph.register_initializer(_transposed(weight, name))
        ir.convenience.replace_all_uses_with(node.outputs[0], graph.initializers[name])
        graph.remove(node, safe=True)
        if weight.name is not None and not weight.uses():
            graph.initializers.pop(weight.name)


def _transposed(weight: ir.Value, name: str) -> ir.Value:
    values = weight.const_value
    assert values is not None and values.shape is not None
    shape = ir.Shape(values.numpy().shape[::-1])
    lazy = ir.LazyTensor(lambda: ir.tensor(values.numpy().T.copy()), dtype=values.dtype, shape=shape, name=name)
    return ir.Value(name=name, type=weight.type, shape=shape, const_value=lazy)


def _optimise(model: ir.Model) -> None:
    """As onnxscript's optimiser, but equal initializers stay apart: weights that are equal now may be patched later."""
    onnxscript.optimizer.fold_constants(model, onnx_shape_inference=True)
    onnxscript.rewriter.rewrite(model)
    onnxscript.optimizer.fold_constants(model, onnx_shape_inference=True)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _name_dimensions(graph: ir.Graph, part: GraphPart) -> None:
    shapes = [tuple(tensor.shape) for tensor in part.inputs.values()] + list(part.outputs.values())
    for value, shape in zip((*graph.inputs, *graph.outputs), shapes, strict=True):
        value.shape = ir.Shape(part.sizes.names(shape))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on our operators' signatures and on torch's own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
