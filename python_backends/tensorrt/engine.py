"""One engine on one GPU: tensors in, tensors out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from cachetools import LRUCache

from .metadata import EngineMetadata, EngineMismatchError, Machine
from .shapes import choose_profile
from .versions import require_tensorrt

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .metadata import Bounds, Shape

MAX_SHAPES = 8
"""Sets of input shapes that are kept ready; the one that was not used for longest goes first."""


@cache
def logger() -> Any:
    """TensorRT's, for warnings and errors, one per process: it keeps the first that it is given."""
    trt = require_tensorrt()
    return trt.Logger(trt.Logger.WARNING)


def torch_type(dtype: Any) -> torch.dtype:
    """PyTorch's type of TensorRT's.

    Raises:
        ValueError: If it has none here.
    """
    trt = require_tensorrt()
    kinds = trt.DataType
    known = {
        kinds.FLOAT: torch.float32,
        kinds.HALF: torch.float16,
        kinds.BF16: torch.bfloat16,
        kinds.INT32: torch.int32,
        kinds.INT64: torch.int64,
        kinds.BOOL: torch.bool,
        kinds.UINT8: torch.uint8,
    }
    if dtype not in known:
        raise ValueError(f"a tensor of the engine is {dtype}; known: {', '.join(str(kind) for kind in known)}")
    return known[dtype]


@dataclass(frozen=True)
class _Ready:
    """What serves one set of input shapes: an execution context that sees no others, and buffers that stay put.

    A context per set of shapes, because one that alternates leaks the modules of plugins at every change
    (NVIDIA/TensorRT issue 4849), and because a captured graph keeps addresses.
    """

    context: Any
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]


class Engine:
    """A deserialised plan. Not for several threads: activations of all calls share one piece of memory.

    Attributes:
        cuda_engine: TensorRT's object.
        device: Where it runs.
        inputs: Name → type.
        outputs: Name → type.
    """

    def __init__(self, plan: Path, device: torch.device) -> None:
        """Loads a plan that was checked before: see `load`.

        Raises:
            TensorRTUnavailableError: Without TensorRT.
            EngineMismatchError: If TensorRT does not take the plan.
        """
        trt = require_tensorrt()
        self.device = device
        with torch.cuda.device(device):
            self._runtime = trt.Runtime(logger())
            self.cuda_engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
            if self.cuda_engine is None:
                raise EngineMismatchError(f"TensorRT {trt.__version__} does not take {plan}; its log says why")
            size = max(int(self.cuda_engine.device_memory_size_v2), 1)
            self._activations = torch.empty(size, dtype=torch.uint8, device=device)
            self._stream = torch.cuda.Stream()
        names = [self.cuda_engine.get_tensor_name(index) for index in range(self.cuda_engine.num_io_tensors)]
        types = {name: torch_type(self.cuda_engine.get_tensor_dtype(name)) for name in names}
        taken = [name for name in names if self.cuda_engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.inputs = {name: types[name] for name in taken}
        self.outputs = {name: types[name] for name in names if name not in taken}
        self._profiles = [self._profile(index) for index in range(self.cuda_engine.num_optimization_profiles)]
        self._ready: LRUCache[tuple[Shape, ...], _Ready] = LRUCache(MAX_SHAPES)

    @classmethod
    def load(cls, directory: Path, name: str, device: torch.device) -> Engine:
        """The engine of that name in a directory of `build-engines`, if it is one for this machine.

        Raises:
            EngineMismatchError: If it is not, with the command that builds it.
            TensorRTUnavailableError: Without TensorRT or a GPU.
        """
        metadata = EngineMetadata.read(directory, name)
        return cls(metadata.check(directory, Machine.here(device.index or 0)), device)

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Enqueues one evaluation, between what PyTorch's current stream has and what it will get.

        It runs on a stream of its own: on the default one, which the current one usually is, TensorRT synchronises.

        Args:
            inputs: Name → tensor, of any type, on any device; exactly those of `inputs`.

        Returns:
            Name → tensor, of the engine's types, on its device. The next call with inputs of these shapes overwrites
            them.

        Raises:
            EngineShapeError: If the engine was not built for these shapes.
            RuntimeError: If TensorRT fails.
        """
        with torch.cuda.device(self.device):
            ready = self._of({name: tuple(tensor.shape) for name, tensor in inputs.items()})
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                for name, tensor in inputs.items():
                    ready.inputs[name].copy_(tensor, non_blocking=True)
                if not ready.context.execute_async_v3(self._stream.cuda_stream):
                    raise RuntimeError("TensorRT could not run the engine; its log says why")
            caller.wait_stream(self._stream)
        return dict(ready.outputs)

    def _of(self, shapes: dict[str, Shape]) -> _Ready:
        key = tuple(shapes.get(name, ()) for name in self.inputs)
        known = self._ready.get(key)
        if known is None or len(shapes) != len(self.inputs):
            profile = choose_profile(shapes, self._profiles)
            known = self._ready[key] = self._prepare(profile, shapes)
        return known

    def _prepare(self, profile: int, shapes: dict[str, Shape]) -> _Ready:
        trt = require_tensorrt()
        context = self.cuda_engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise RuntimeError("TensorRT gives no execution context; its log says why")
        context.set_device_memory(self._activations.data_ptr(), self._activations.numel())
        stream = torch.cuda.current_stream()
        if profile and not context.set_optimization_profile_async(profile, stream.cuda_stream):
            raise RuntimeError(f"TensorRT does not take optimisation profile {profile}; its log says why")
        stream.synchronize()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise RuntimeError(f"TensorRT does not take {name} of {list(shape)}; its log says why")
        unknown = context.infer_shapes()
        if unknown:
            raise RuntimeError(f"TensorRT cannot tell the shapes of {', '.join(unknown)}")
        inputs = {name: self._buffer(self.inputs[name], shape) for name, shape in shapes.items()}
        outputs = {
            name: self._buffer(dtype, tuple(context.get_tensor_shape(name))) for name, dtype in self.outputs.items()
        }
        for name, tensor in (inputs | outputs).items():
            context.set_tensor_address(name, tensor.data_ptr())
        return _Ready(context, inputs, outputs)

    def _buffer(self, dtype: torch.dtype, shape: Shape) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def _profile(self, index: int) -> dict[str, Bounds]:
        bounds = {}
        for name in self.inputs:
            low, best, high = self.cuda_engine.get_tensor_profile_shape(name, index)
            bounds[name] = tuple(low), tuple(best), tuple(high)
        return bounds
