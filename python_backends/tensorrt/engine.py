"""One engine on one GPU: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from cachetools import LRUCache

from ..lora.files.modules import adaptable_weights
from .metadata import EngineMetadata, EngineMismatchError, Machine
from .runtime_cache import RuntimeCache
from .shapes import EngineShapeError, choose_profile
from .tensor_names import WEIGHT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from .flavours import Flavour
    from .metadata import Bounds, Shape

MAX_SHAPES, READY_SHARE = 16, 0.1
"""Sets of input shapes that are kept ready, and of the GPU's memory what all that they are given and give may take.
What was not used for longest goes first."""

ALIGNMENT = 256
"""Bytes; TensorRT wants the addresses of tensors to be multiples of it."""


TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT32": "int32", "INT64": "int64"}
"""TensorRT's names of types → PyTorch's."""


@dataclass(frozen=True)
class _Ready:
    """What serves one set of input shapes: an execution context that sees no others, and memory that stays put.

    A context per set of shapes, because one that alternates leaks the modules of plugins at every change
    (NVIDIA/TensorRT issue 4849), and because a graph keeps addresses.
    """

    context: Any
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    activations: torch.Tensor
    launch: Callable[[], object]

    @property
    def nbytes(self) -> int:
        """Of what it is given and gives; activations are all shapes'."""
        return sum(tensor.nbytes for tensor in (*self.inputs.values(), *self.outputs.values()))


class Engine:
    """A deserialised plan. Not for several threads: activations of all calls share one piece of memory.

    Weights that are inputs are the parameters of a network, which may be patched in place between calls, on the stream
    from which they are made.

    Attributes:
        cuda_engine: TensorRT's object.
        device: Where it runs.
        inputs: Name → type, but for weights.
        outputs: Name → type.
        constants: Modules whose weights it holds as they were when it was built.
    """

    def __init__(
        self,
        plan: Path,
        device: torch.device,
        flavour: Flavour,
        machine: Machine,
        weights: Mapping[str, torch.Tensor],
        constants: Iterable[str] = (),
    ) -> None:
        """Loads a plan that was checked before: see `load`.

        Args:
            plan: The file.
            device: A GPU.
            flavour: What runs it.
            machine: That GPU.
            weights: Input → parameter, at an address that does not change.
            constants: Weights that it holds.

        Raises:
            TensorRTUnavailableError: Without TensorRT.
            EngineMismatchError: If TensorRT does not take the plan, or the weights are not the plan's.
        """
        self._trt, self._log = flavour.require(), flavour.log
        trt = self._trt
        self._activations = torch.empty(0, dtype=torch.uint8, device=device)
        self.device = self._activations.device  # with its number, as tensors say it
        with torch.cuda.device(self.device):
            self._stream = torch.cuda.Stream()  # and so the CUDA context, without which no runtime cache is read
            self._runtime = trt.Runtime(self._log)
            self.cuda_engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
            if self.cuda_engine is None:
                raise EngineMismatchError(f"{flavour.title} {trt.__version__} does not take {plan}: {self._log.said()}")
            self._cache = RuntimeCache(flavour, self.cuda_engine, plan, machine) if flavour.compiles_at_load else None
        names = [self.cuda_engine.get_tensor_name(index) for index in range(self.cuda_engine.num_io_tensors)]
        types = {name: getattr(torch, TYPES[self.cuda_engine.get_tensor_dtype(name).name]) for name in names}
        taken = [name for name in names if self.cuda_engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.inputs = {name: types[name] for name in taken if not name.endswith(WEIGHT)}
        self.outputs = {name: types[name] for name in names if name not in taken}
        self._weights = dict(weights)
        self.constants = frozenset(name.removesuffix(WEIGHT) for name in constants)
        for name in taken:
            if name.endswith(WEIGHT):
                check_weight(name, weights, types[name], tuple(self.cuda_engine.get_tensor_shape(name)))
        self._profiles = [self._profile(index) for index in range(self.cuda_engine.num_optimization_profiles)]
        most = READY_SHARE * torch.cuda.get_device_properties(self.device).total_memory
        self._ready: LRUCache[tuple[Shape, ...], _Ready] = LRUCache(
            1.0, lambda ready: min(1.0, max(1 / MAX_SHAPES, ready.nbytes / most))
        )

    @classmethod
    def load(
        cls,
        directory: Path,
        name: str,
        device: torch.device,
        flavour: Flavour,
        weights: Mapping[str, torch.Tensor] | None = None,
        digest: str | None = None,
    ) -> Engine:
        """The engine of that name in a directory of `build-engines`, if it is one for this machine and network.

        Args:
            directory: Of the engines.
            name: Of the engine.
            device: A GPU.
            flavour: What runs it.
            weights: Input → parameter, at an address that does not change; those that are no inputs are passed over.
            digest: See `EngineMetadata.check`.

        Raises:
            EngineMismatchError: If it is not, with the command that builds it.
            TensorRTUnavailableError: Without TensorRT or a GPU.
        """
        metadata = EngineMetadata.read(directory, name, flavour.name)
        metadata.check_runtime(directory, flavour.name)
        machine = Machine.here(flavour, device.index or 0)
        plan = metadata.check(directory, flavour, machine, digest)
        given = weights or {}
        taken = {name: given[name] for name in metadata.weights if name in given}
        return cls(plan, device, flavour, machine, taken, metadata.constants)

    def takes(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether it was built for these shapes."""
        try:
            choose_profile(shapes, self._profiles)
        except EngineShapeError:
            return False
        return True

    def run(
        self, inputs: Mapping[str, torch.Tensor], adopted: Collection[str] = frozenset()
    ) -> dict[str, torch.Tensor]:
        """Enqueues one evaluation, between what PyTorch's current stream has and what it will get.

        It runs on a stream of its own: on the default one, which the current one usually is, TensorRT synchronises.

        Args:
            inputs: Name → tensor, of any type, on any device; exactly those of `inputs`.
            adopted: Inputs of which the first of their shapes become the engine's own memory: what is the same tensor
                again is not copied, and others are copied there. For what another engine gives.

        Returns:
            Name → tensor, of the engine's types, on its device. The next call with inputs of these shapes overwrites
            them.

        Raises:
            EngineShapeError: If the engine was not built for these shapes.
            RuntimeError: If TensorRT fails.
        """
        with torch.cuda.device(self.device):
            ready = self._of(inputs, adopted)
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                for name, tensor in inputs.items():
                    if ready.inputs[name] is not tensor:
                        ready.inputs[name].copy_(tensor, non_blocking=True)
                ready.launch()
            caller.wait_stream(self._stream)
        return dict(ready.outputs)

    def _of(self, inputs: Mapping[str, torch.Tensor], adopted: Collection[str]) -> _Ready:
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        key = tuple(shapes.get(name, ()) for name in self.inputs)
        known = self._ready.get(key)
        if known is None or len(shapes) != len(self.inputs):
            profile = choose_profile(shapes, self._profiles)
            own = {name: self._own(name, tensor, name in adopted) for name, tensor in inputs.items()}
            known = self._ready[key] = self._prepare(profile, own)
        return known

    def _own(self, name: str, tensor: torch.Tensor, adopts: bool) -> torch.Tensor:
        """Memory for an input like this one, if it may not be the input itself."""
        fits = tensor.dtype == self.inputs[name] and tensor.device == self.device and tensor.is_contiguous()
        return tensor if adopts and fits and not tensor.data_ptr() % ALIGNMENT else self._buffer(name, tensor.shape)

    def _prepare(self, profile: int, inputs: dict[str, torch.Tensor]) -> _Ready:
        """Everything that a set of shapes needs, kernels and graphs too: it is run once, with whatever is there."""
        context = self._context()
        if profile and not context.set_optimization_profile_async(profile, self._stream.cuda_stream):
            raise RuntimeError(f"TensorRT does not take optimisation profile {profile}: {self._log.said()}")
        for name, tensor in inputs.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise RuntimeError(f"TensorRT does not take {name} of {list(tensor.shape)}: {self._log.said()}")
        unknown = context.infer_shapes()
        if unknown:
            raise RuntimeError(f"TensorRT cannot tell the shapes of {', '.join(unknown)}")
        needed = context.update_device_memory_size_for_shapes()
        if needed > (had := self._activations.numel()):  # which contexts for other shapes keep: it grows by doubling
            self._activations = torch.empty(max(needed, 2 * had), dtype=torch.uint8, device=self.device)
        context.set_device_memory(self._activations.data_ptr(), self._activations.numel())
        outputs = {name: self._buffer(name, tuple(context.get_tensor_shape(name))) for name in self.outputs}
        for name, tensor in (inputs | outputs | self._weights).items():
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise RuntimeError(f"TensorRT does not take the address of {name}: {self._log.said()}")

        def enqueue() -> None:
            if not context.execute_async_v3(self._stream.cuda_stream):
                raise RuntimeError(f"TensorRT could not run the engine: {self._log.said()}")

        self._stream.wait_stream(torch.cuda.current_stream())
        enqueue()
        self._stream.synchronize()
        if self._cache is not None:
            self._cache.keep()
            return _Ready(context, inputs, outputs, self._activations, enqueue)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):  # others may upload
            enqueue()
        return _Ready(context, inputs, outputs, self._activations, graph.replay)

    def _context(self) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self.cuda_engine.create_execution_context(self._cache.config if self._cache else strategy)
        if context is None:
            raise RuntimeError(f"TensorRT gives no execution context: {self._log.said()}")
        return context

    def _buffer(self, name: str, shape: Shape) -> torch.Tensor:
        dtype = self.inputs.get(name) or self.outputs[name]
        with torch.inference_mode(False):  # else later calls outside inference mode could not write to it
            return torch.zeros(shape, dtype=dtype, device=self.device)

    def _profile(self, index: int) -> dict[str, Bounds]:
        bounds = {}
        for name in self.inputs:
            low, best, high = self.cuda_engine.get_tensor_profile_shape(name, index)
            bounds[name] = tuple(low), tuple(best), tuple(high)
        return bounds


def parameters(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a network that engines may take as inputs, by the inputs' names.

    Args:
        network: On a GPU, as a `Patcher` with weights in place has arranged it.
    """
    return {f"{module}{WEIGHT}": weight for module, weight in adaptable_weights(network).items()}


def check_weight(name: str, weights: Mapping[str, torch.Tensor], dtype: torch.dtype, shape: Shape) -> None:
    """Compares a network's parameter with the input that is to read it where it lies.

    Raises:
        EngineMismatchError: If there is none of that name, type and shape, or it does not lie as engines read it.
    """
    found = weights.get(name)
    if found is None or found.dtype != dtype or tuple(found.shape) != shape:
        given = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
        raise EngineMismatchError(f"the engine's input {name} is {dtype} {list(shape)}; the network has {given}")
    if not found.is_contiguous() or found.data_ptr() % ALIGNMENT:
        raise EngineMismatchError(
            f"the weight {name} lies at {found.data_ptr():#x} with strides {list(found.stride())}; engines read "
            f"contiguous ones at multiples of {ALIGNMENT} bytes"
        )
