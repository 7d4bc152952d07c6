"""Engines where there is no GPU: TensorRT's objects, of which ONNX Runtime computes what the plan was built from.

Builders, plans and their descriptions are real, and so is `tensorrt.engine.Engine`. What stands in for TensorRT-RTX
where it runs reads and writes at the addresses that it is given, and knows nothing of PyTorch.
"""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
import torch

from onnx_graphs import session
from swiftdiffusion.export.tensorrt.graph import Graph
from swiftdiffusion.export.tensorrt.profiles import input_shapes
from swiftdiffusion.python_backends.tensorrt import engine as engines
from swiftdiffusion.python_backends.tensorrt.metadata import EngineMetadata, Machine

TYPES = {"tensor(float)": ("FLOAT", np.float32), "tensor(float16)": ("HALF", np.float16)}
TYPES["tensor(int64)"] = ("INT64", np.int64)
COMPILED = b"compiled"
Shape = tuple[int, ...]


def use(monkeypatch: pytest.MonkeyPatch, capability: str = "8.9") -> Runs:
    """From now on TensorRT-RTX seems to run on a GPU, which is the CPU."""

    class Stream:
        cuda_stream = 1

        def wait_stream(self, other: object) -> None:
            pass

        def synchronize(self) -> None:
            pass

    runs = Runs()
    machine = Machine("a GPU", capability, tensorrt_rtx.__version__)
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls, flavour, device: machine))
    monkeypatch.setattr(engines, "ALIGNMENT", 4)  # a CPU's stacks of tiny weights have no other
    for name, function in {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
        "get_device_properties": lambda device: SimpleNamespace(total_memory=2**34),
    }.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(tensorrt_rtx, "Runtime", lambda log: SimpleNamespace(deserialize_cuda_engine=runs.engine))
    check = EngineMetadata.check

    def checked(self: EngineMetadata, *given: Any) -> Path:
        plan = check(self, *given)
        runs.described[plan.read_bytes()] = self
        return plan

    monkeypatch.setattr(EngineMetadata, "check", checked)
    return runs


class Runs:
    """What ran.

    Attributes:
        calls: Engine → how often.
        caches: What runtime caches were given to begin with.
    """

    def __init__(self) -> None:
        self.described: dict[bytes, EngineMetadata] = {}
        self.calls: dict[str, int] = {}
        self.caches: list[bytes] = []

    def engine(self, plan: bytes) -> CudaEngine:
        return CudaEngine(self, self.described[plan])


class CudaEngine:
    """`ICudaEngine`."""

    def __init__(self, runs: Runs, metadata: EngineMetadata) -> None:
        self.runs, self.metadata = runs, metadata
        graph, self.session = Graph.read(Path(metadata.onnx), metadata.name), None
        self.session = session(graph.path)
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.weights = {name: tuple(graph.weights[name]) for name in metadata.weights}
        values = (
            *self.session.get_inputs(),
            *self.session.get_outputs(),
            *self.session.get_overridable_initializers(),
        )
        self.types = {value.name: TYPES[value.type] for value in values}
        self.names = [*self.inputs, *self.weights, *self.outputs]
        self.num_io_tensors, self.num_optimization_profiles = len(self.names), len(metadata.profiles)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=self.types[name][0])

    def get_tensor_mode(self, name: str) -> Any:
        modes = tensorrt_rtx.TensorIOMode
        return modes.OUTPUT if name in self.outputs else modes.INPUT

    def get_tensor_shape(self, name: str) -> Shape:
        return self.weights[name]

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self.metadata.profiles[index][name]

    def create_runtime_config(self) -> Config:
        return Config(self.runs)

    def create_execution_context(self, config: Config) -> Context:
        assert config.strategy == tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED
        assert config.cuda_graph_strategy == tensorrt_rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return Context(self)


class Config:
    """`IRuntimeConfig`, and the `IRuntimeCache` of it."""

    strategy = cuda_graph_strategy = dynamic_shapes_kernel_specialization_strategy = None

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def create_runtime_cache(self) -> Config:
        return self

    def deserialize(self, content: bytes) -> bool:
        self._runs.caches.append(content)
        return content == COMPILED

    def serialize(self) -> bytes:
        return COMPILED

    def set_runtime_cache(self, cache: Config) -> None:
        assert cache is self

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class Context:
    """`IExecutionContext`."""

    def __init__(self, engine: CudaEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._memory = -1

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        self._shapes[name] = shape
        return name in self._engine.inputs

    def infer_shapes(self) -> list[str]:
        return sorted(self._engine.inputs.keys() - self._shapes.keys())

    def update_device_memory_size_for_shapes(self) -> int:
        return sum(int(np.prod(shape)) for shape in self._shapes.values())

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.update_device_memory_size_for_shapes()
        self._memory = address

    def get_tensor_shape(self, name: str) -> Shape:
        rows, latents = 1, (1, 1)
        for own, dimensions in self._engine.inputs.items():
            shape = self._shapes[own]
            rows = shape[0]
            if dimensions[2:] == ("height", "width"):
                latents = shape[2], shape[3]
        return input_shapes({name: self._engine.outputs[name]}, rows, latents)[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._engine.names

    def execute_async_v3(self, stream: int) -> bool:
        assert self._memory >= 0
        engine, shapes = self._engine, self._shapes | self._engine.weights
        given = {name: self._at(name, shape) for name, shape in shapes.items()}
        names = list(engine.outputs)
        for name, found in zip(names, engine.session.run(names, given), strict=True):
            self._at(name, self.get_tensor_shape(name))[...] = found
        engine.runs.calls[engine.metadata.name] = engine.runs.calls.get(engine.metadata.name, 0) + 1
        return True

    def _at(self, name: str, shape: Shape) -> np.ndarray:
        """The memory where a tensor was said to lie."""
        dtype = np.dtype(self._engine.types[name][1])
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self._addresses[name]), dtype).reshape(shape)
