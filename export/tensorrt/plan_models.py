"""Engines that Triton serves without Python: models of its platform `tensorrt_plan`, for VAE and text encoders."""

from __future__ import annotations

import shutil
from itertools import count
from typing import TYPE_CHECKING

from tritonclient.grpc import model_config_pb2 as pb

from ..repository.config_parts import model_input, model_output
from .graph import GraphError

if TYPE_CHECKING:
    from pathlib import Path

    from ...python_backends.tensorrt.metadata import EngineMetadata
    from .graph import Graph

_TYPES = {"FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "INT64": "INT64", "INT32": "INT32", "BOOL": "BOOL"}
"""ONNX's → Triton's."""


def plan_config(model: str, metadata: EngineMetadata, graph: Graph, gpus: tuple[int, ...] = (0,)) -> pb.ModelConfig:
    """The config.pbtxt of an engine's model.

    Triton batches requests as far as the engine's profiles go without a gap; an instance may use all of them.

    Args:
        model: Name of the model.
        metadata: Of the engine.
        graph: The ONNX file that it was built from.
        gpus: An instance on each.

    Raises:
        GraphError: If a tensor has no batch dimension, or a type that Triton does not know, or weights are inputs.
    """
    most = next(rows for rows in count(1) if not metadata.holds(rows)) - 1
    if not most:
        raise GraphError(f"engine {metadata.name} takes no single row; wanted: one built with --rows 1:…")
    if metadata.weights:
        raise GraphError(f"engine {metadata.name} takes weights as inputs; wanted: one built with --weights constant")
    config = pb.ModelConfig(name=model, platform="tensorrt_plan", max_batch_size=most)
    types = graph.types
    sizes = _sizes(metadata, graph)
    for name, shape in graph.inputs.items():
        config.input.append(model_input(name, _type(name, types[name]), _dims(name, shape, sizes)))
    for name, shape in graph.outputs.items():
        config.output.append(model_output(name, _type(name, types[name]), _dims(name, shape, sizes)))
    group = config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU, gpus=gpus)
    group.profile.extend(str(index) for index in range(len(metadata.profiles)))
    config.dynamic_batching.SetInParent()
    return config


def write_plan_model(repository: Path, engines: Path, config: pb.ModelConfig, engine: str) -> Path:
    """Writes config.pbtxt and the plan as version 1.

    Returns:
        The model's directory.
    """
    from google.protobuf import text_format

    directory = repository / config.name
    (directory / "1").mkdir(parents=True, exist_ok=True)
    (directory / "config.pbtxt").write_text(text_format.MessageToString(config), "utf-8")
    shutil.copyfile(engines / f"{engine}.plan", directory / "1" / "model.plan")
    return directory


def _sizes(metadata: EngineMetadata, graph: Graph) -> dict[str, int]:
    """Name of a dimension → its size, where the profiles have just one."""
    found: dict[str, set[int]] = {}
    for profile in metadata.profiles:
        for name, bounds in profile.items():
            for shape in bounds:
                for dimension, size in zip(graph.inputs[name], shape, strict=True):
                    if isinstance(dimension, str):
                        found.setdefault(dimension, set()).add(size)
    return {dimension: sizes.pop() for dimension, sizes in found.items() if len(sizes) == 1}


def _dims(name: str, shape: tuple[int | str, ...], sizes: dict[str, int]) -> tuple[int, ...]:
    """Without the batch; -1 for dimensions that the engine leaves open or that are not known here."""
    if not shape:
        raise GraphError(f"{name} has no dimensions; wanted: a batch at least")
    rest = shape[1:] or (1,)
    return tuple(size if isinstance(size, int) else sizes.get(size, -1) for size in rest)


def _type(name: str, onnx_type: str) -> str:
    if onnx_type not in _TYPES:
        raise GraphError(f"{name} is {onnx_type} in the ONNX file; allowed: {', '.join(_TYPES)}")
    return _TYPES[onnx_type]
