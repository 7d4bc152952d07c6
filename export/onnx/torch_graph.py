"""A module of PyTorch as an ONNX model whose parameters keep their names, and whose LoRAs' weights are inputs."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import onnx_ir as ir
import onnxscript.optimizer
import onnxscript.rewriter
import torch
from onnx_ir.passes import common

from ...python_backends.lora.files.modules import COMPONENTS, adaptable_weights
from ...python_backends.tensorrt.tensor_names import NORMS, PRECISION, WEIGHTS_DIGEST
from .errors import LostWeightError
from .function_bodies import REDUCE, add_function_bodies
from .fused_nodes import OPSET, translations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .graph_part import GraphPart


def torch_graph(part: GraphPart, norms: str = REDUCE) -> ir.Model:
    """The graph of a part.

    Parameters are initializers under the names of the network's state dict. Of a network that LoRAs adapt, the weights
    of linear layers and convolutions that the graph computes with are inputs besides, after all others: what reads the
    file may give its own, in PyTorch's layout. The fused operators are single nodes.

    Args:
        part: What becomes a graph.
        norms: Of `function_bodies.NORM_FORMS`.

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
    for value in list(model.graph.initializers.values()):
        if value.name is not None:
            value.name = value.name.removeprefix(prefix)
    used = {name.removeprefix(prefix) for name in _used_parameters(program.exported_program)}
    _make_inputs(model.graph, part, used)
    _optimise(model)
    _check_weights(model.graph, part)
    _name_dimensions(model.graph, part)
    add_function_bodies(model, norms)
    precision = str(next(part.network.parameters()).dtype).removeprefix("torch.")
    model.metadata_props.update({WEIGHTS_DIGEST: part.digest, NORMS: norms, PRECISION: precision})
    return model


def _prefix(part: GraphPart) -> str:
    """What the wrapping modules put before the names of the network's parameters."""
    return next(f"{name}." for name, module in part.module.named_modules() if module is part.network)


def _used_parameters(program: torch.export.ExportedProgram) -> set[str]:
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    names = program.graph_signature.inputs_to_parameters
    return {name for node, name in names.items() if node in used}


def _make_inputs(graph: ir.Graph, part: GraphPart, names: set[str]) -> None:
    """Weights that LoRAs adapt become inputs; what the file holds of them is their default."""
    if part.component in COMPONENTS:
        adapted = (f"{module}.weight" for module in adaptable_weights(part.network))
        graph.inputs.extend(graph.initializers[name] for name in adapted if name in names)


def _check_weights(graph: ir.Graph, part: GraphPart) -> None:
    shapes = {f"{module}.weight": tuple(weight.shape) for module, weight in adaptable_weights(part.network).items()}
    for value in graph.inputs[len(part.inputs) :]:
        wanted = shapes[str(value.name)]
        if not value.uses() or value.shape is None or tuple(value.shape) != wanted:
            raise LostWeightError(
                f"{part.name}: {value.name} is in the graph as {value.shape} and used {len(value.uses())} times; "
                f"wanted: {list(wanted)}, and that the graph computes with it"
            )


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
    for value, shape in zip((*graph.inputs[: len(part.inputs)], *graph.outputs), shapes, strict=True):
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
