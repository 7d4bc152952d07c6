"""What TensorRT-RTX has compiled for a GPU, beside the engine: the next process starts warm."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..common.filesystem import replace_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from .flavours import Flavour
    from .metadata import Machine

logger = logging.getLogger(__name__)


class RuntimeCache:
    """How execution contexts of an engine are made, where kernels are compiled at load.

    The file is of one engine, kind of GPU and release; what TensorRT-RTX does not take of it, as of another driver, is
    compiled anew.

    Attributes:
        config: For `create_execution_context`.
    """

    def __init__(self, flavour: Flavour, cuda_engine: Any, plan: Path, machine: Machine) -> None:
        """Reads the file, if there is one.

        Args:
            flavour: One that compiles at load.
            cuda_engine: TensorRT's, on the GPU that is current.
            plan: What the engine was read from; the file lies beside it.
            machine: Where it runs.
        """
        trt = flavour.require()
        self.path = cache_path(plan, machine)
        self.config = cuda_engine.create_runtime_config()
        self._cache, self._kept = self.config.create_runtime_cache(), b""
        with suppress(OSError):
            self._kept = self.path.read_bytes()
            if not self._cache.deserialize(self._kept):
                logger.warning("%s is not used: it is of another GPU, driver or release", self.path)
        self.config.set_runtime_cache(self._cache)
        self.config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self.config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self.config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def keep(self) -> None:
        """Writes the file anew, if more was compiled; where it cannot be written, the next process compiles again."""
        try:
            content = bytes(memoryview(self._cache.serialize()))
            if content != self._kept:
                replace_bytes(self.path, content)
                self._kept = content
        except (OSError, RuntimeError, TypeError) as error:  # of files; of TensorRT, which may give nothing
            logger.warning("what was compiled is not kept: %s", error)


def cache_path(plan: Path, machine: Machine) -> Path:
    """Where what was compiled of a plan lies: `NAME.GPU-RELEASE.cache`."""
    words = f"{machine.gpu}-{machine.release}"
    return plan.with_name(f"{plan.stem}.{re.sub(r'[^A-Za-z0-9.]+', '-', words)}.cache")
