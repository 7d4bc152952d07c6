"""An ONNX file before TensorRT reads it: its inputs, its files, its operators; and sizes written into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...python_backends.common.filesystem import sha256_of
from ...python_backends.tensorrt.tensor_names import NORMS, PRECISION, WEIGHTS_DIGEST
from .plugins import NAMESPACE, OPERATORS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    import onnx
    import torch

    from ...python_backends.tensorrt.metadata import Shape

Dimensions = tuple[int | str, ...]


class GraphError(ValueError):
    """An ONNX file from which no engine can be built; the message says why."""


@dataclass(frozen=True)
class Graph:
    """An ONNX file, without its weights.

    Attributes:
        path: Of the file.
        model: What it holds; tensors in other files are left there.
    """

    path: Path
    model: onnx.ModelProto

    @classmethod
    def read(cls, directory: Path, name: str) -> Graph:
        """Reads `NAME.onnx`.

        Raises:
            GraphError: If there is none, or it is not ONNX, or the package `onnx` is missing.
        """
        try:
            import onnx
        except ModuleNotFoundError:
            raise GraphError("reading ONNX files needs onnx: pip install 'swiftdiffusion[tensorrt]'") from None
        from google.protobuf.message import DecodeError

        path = directory / f"{name}.onnx"
        try:
            return cls(path, onnx.load(path, load_external_data=False))
        except FileNotFoundError:
            known = ", ".join(names(directory)) or "none"
            raise GraphError(f"{directory} has no {path.name}; networks there: {known}") from None
        except DecodeError as error:
            raise GraphError(f"{path} is not ONNX: {error}") from None

    @property
    def inputs(self) -> dict[str, Dimensions]:
        """Input → shape, but for weights; dimensions that vary are names."""
        held = {tensor.name for tensor in self.model.graph.initializer}
        return {value.name: _dimensions(value) for value in self.model.graph.input if value.name not in held}

    @property
    def weights(self) -> dict[str, Dimensions]:
        """Input that is a weight, whose value in the file is a default → shape."""
        given = self.inputs
        return {value.name: _dimensions(value) for value in self.model.graph.input if value.name not in given}

    @property
    def digest(self) -> str:
        """Of the network that it was made of; empty where the file does not say."""
        return self._said(WEIGHTS_DIGEST)

    @property
    def norms(self) -> str:
        """What norms' nodes mean, of `onnx.function_bodies.NORM_FORMS`; empty where the file does not say."""
        return self._said(NORMS)

    def _said(self, key: str) -> str:
        return next((entry.value for entry in self.model.metadata_props if entry.key == key), "")

    @property
    def outputs(self) -> dict[str, Dimensions]:
        """Output → shape; dimensions that vary are names."""
        return {value.name: _dimensions(value) for value in self.model.graph.output}

    @property
    def types(self) -> dict[str, str]:
        """Input or output → ONNX's name of its type, such as `FLOAT16`."""
        from onnx import TensorProto

        values = (*self.model.graph.input, *self.model.graph.output)
        return {value.name: TensorProto.DataType.Name(value.type.tensor_type.elem_type) for value in values}

    @property
    def precision(self) -> str:
        """Of its weights: `float16`, `bfloat16` or `float32`; empty where the file does not say."""
        return self._said(PRECISION)

    @property
    def plugins(self) -> tuple[str, ...]:
        """Operators among its nodes that this project has plugins for."""
        used = {node.op_type for node in self.model.graph.node if node.domain == NAMESPACE}
        return tuple(operator for operator in OPERATORS if operator in used)

    def sources(self) -> dict[str, str]:
        """File beside the ONNX file, itself included → SHA-256.

        Raises:
            GraphError: If one is missing.
        """
        outside = {
            entry.value
            for tensor in self.model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        files = [self.path.name, *sorted(outside)]
        try:
            return {name: sha256_of(self.path.parent / name) for name in files}
        except FileNotFoundError as error:
            raise GraphError(f"{self.path} wants {error.filename}, which is missing") from None

    def defaults(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """What the file holds of inputs that are weights."""
        import torch
        from onnx import numpy_helper

        held = {tensor.name: tensor for tensor in self.model.graph.initializer}
        return {name: torch.tensor(numpy_helper.to_array(held[name], str(self.path.parent))) for name in names}

    def for_engine(self, shapes: Mapping[str, tuple[int | None, ...]], weights: Collection[str]) -> bytes:
        """The file's content as TensorRT is to read it; values outside stay outside.

        Args:
            shapes: Input → shape, which is written into it, so that kernels may rely on it; None for dimensions that
                are to vary.
            weights: Those of `weights` that are inputs without a value; all others are constants.
        """
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        _drop(model.graph.initializer, set(weights))
        _drop(model.graph.input, self.weights.keys() - set(weights))
        for value in model.graph.input:
            if value.name in weights:
                continue
            dimensions = value.type.tensor_type.shape.dim
            for dimension, size in zip(dimensions, shapes[value.name], strict=True):
                if size is not None:
                    dimension.dim_value = size
        del model.graph.value_info[:]  # sizes that the exporter saw
        return model.SerializeToString()


def _drop(held: Any, names: Collection[str]) -> None:
    """Those of a message's repeated field that have these names."""
    for index in reversed(range(len(held))):
        if held[index].name in names:
            del held[index]


def _dimensions(value: onnx.ValueInfoProto) -> Dimensions:
    return tuple(
        dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param or "?"
        for dimension in value.type.tensor_type.shape.dim
    )


def fixed_shapes(shapes: Iterable[Shape]) -> tuple[int | None, ...]:
    """What some shapes of one input have in common; None where they differ."""
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))


def names(directory: Path) -> list[str]:
    """Networks of an ONNX directory."""
    return sorted(path.stem for path in directory.glob("*.onnx"))
