"""Engines from ONNX files."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...python_backends.common.filesystem import sha256_of
from ...python_backends.tensorrt.engine import logger
from ...python_backends.tensorrt.metadata import EngineMetadata, Machine
from ...python_backends.tensorrt.versions import require_tensorrt
from ...python_backends.tensorrt.weights import read_weight_map
from .graph import Graph, fixed_shapes
from .plugins import register_plugins
from .profiles import input_shapes, profile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...python_backends.tensorrt.metadata import Bounds
    from .profiles import Rows

TIMING_CACHE = "timing.cache"
"""File among the engines with how fast kernels were: a second build with the same layers takes a fraction."""

DRIVER = Path("/proc/driver/nvidia/version")


class BuildError(RuntimeError):
    """TensorRT could not build an engine; the message says at what."""


@dataclass(frozen=True)
class BuildSettings:
    """How engines are built.

    Attributes:
        onnx: Directory of the ONNX files.
        engines: Directory for the engines.
        rows: Batch sizes; an optimisation profile each. Fixed ones give the fastest engines, and each of them takes
            its time to build; a range is one build, tuned for its best.
        latents: (height, width) of the latents; None if the ONNX files fix them.
        plugins: Whether our operators are plugins; else TensorRT has its own way with their function bodies.
        refit: Whether LoRAs can be patched in; without, TensorRT may fuse more.
        workspace_bytes: Most scratch memory that a layer may take; None for all of the GPU's.
        device: Number of the GPU.
        options: The command line's, for the message of an engine that is refused elsewhere.
    """

    onnx: Path
    engines: Path
    rows: tuple[Rows, ...]
    latents: tuple[int, int] | None = None
    plugins: bool = True
    refit: bool = True
    workspace_bytes: int | None = None
    device: int = 0
    options: tuple[str, ...] = ()


class EngineBuilder:
    """Builds engines on one GPU; the timing cache is kept between them."""

    def __init__(self, settings: BuildSettings) -> None:
        """Registers the plugins.

        Raises:
            TensorRTUnavailableError: Without TensorRT or the GPU.
            BuildError: If TensorRT gives no builder.
        """
        import torch

        self._settings = settings
        self._machine = Machine.here(settings.device)
        torch.cuda.set_device(settings.device)
        trt = require_tensorrt()
        if settings.plugins:
            register_plugins(int(self._machine.compute_capability.replace(".", "")))
        try:
            self._builder = trt.Builder(logger())
        except TypeError as error:
            raise BuildError(f"TensorRT {trt.__version__} gives no builder ({error}); its log says why") from error
        settings.engines.mkdir(parents=True, exist_ok=True)

    def build(self, name: str) -> EngineMetadata:
        """Writes `NAME.plan`, `NAME.json` and, where there is one, the weight map.

        Raises:
            BuildError: If TensorRT fails.
            GraphError: If the ONNX file does not fit the settings.
        """
        settings = self._settings
        graph = Graph.read(settings.onnx, name)
        of_rows = {
            number: input_shapes(graph.inputs, number, settings.latents)
            for rows in settings.rows
            for number in rows.all
        }
        profiles = [profile(of_rows, rows) for rows in settings.rows]
        fixed = {
            input_name: fixed_shapes([shapes[input_name] for shapes in of_rows.values()]) for input_name in graph.inputs
        }
        network, parser = self._parse(graph, fixed)
        refittable = self._mark(network, name) if settings.refit else ()
        config = self._config(network, profiles, bool(refittable))
        serialised = self._builder.build_serialized_network(network, config)
        del parser  # it owns weights of the network until here
        if serialised is None:
            raise BuildError(f"{name}: TensorRT builds no engine; its log says why")
        self._keep_timings(config)
        return self._write(graph, name, serialised, profiles, refittable)

    def _parse(self, graph: Graph, shapes: Mapping[str, tuple[int | None, ...]]) -> tuple[Any, Any]:
        """The network, and the parser that owns its weights."""
        trt = require_tensorrt()
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = self._builder.create_network(flags)
        parser = trt.OnnxParser(network, logger())
        if not parser.parse(graph.with_shapes(shapes), str(graph.path)):
            errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
            raise BuildError(f"TensorRT does not take {graph.path}: {errors or 'its log says why'}")
        return network, parser

    def _mark(self, network: Any, name: str) -> tuple[str, ...]:
        """Marks the weights that LoRAs adapt, and no others: all the rest stays constant and can be fused away."""
        initializers = tuple(sorted(place.initializer for place in read_weight_map(self._settings.onnx, name).values()))
        for initializer in initializers:
            if not network.mark_weights_refittable(initializer):
                raise BuildError(
                    f"{name}: TensorRT knows no weights called {initializer}, which {name}.weights.json has"
                )
        return initializers

    def _config(self, network: Any, profiles: list[dict[str, Bounds]], refit: bool) -> Any:
        trt = require_tensorrt()
        config = self._builder.create_builder_config()
        if refit:
            config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
        if self._settings.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self._settings.workspace_bytes)
        path = self._settings.engines / TIMING_CACHE
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            logging.getLogger(__name__).warning("%s is of another GPU or TensorRT and is not used", path)
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        taken = {network.get_input(index).name for index in range(network.num_inputs)}
        for bounds in profiles:
            made = self._builder.create_optimization_profile()
            for name, (low, best, high) in bounds.items():
                if name in taken:
                    made.set_shape(name, low, best, high)
            if config.add_optimization_profile(made) < 0:
                raise BuildError(f"TensorRT does not take the shapes {bounds}")
        return config

    def _keep_timings(self, config: Any) -> None:
        cache = config.get_timing_cache()
        if cache is not None:
            (self._settings.engines / TIMING_CACHE).write_bytes(bytes(cache.serialize()))

    def _write(
        self, graph: Graph, name: str, serialised: Any, profiles: list[dict[str, Bounds]], refittable: tuple[str, ...]
    ) -> EngineMetadata:
        import torch

        settings = self._settings
        plan = settings.engines / f"{name}.plan"
        unfinished = plan.with_suffix(".unfinished")
        unfinished.write_bytes(memoryview(serialised))
        unfinished.replace(plan)
        if refittable:
            shutil.copyfile(settings.onnx / f"{name}.weights.json", settings.engines / f"{name}.weights.json")
        plugins = graph.plugins if settings.plugins else ()
        metadata = EngineMetadata(
            name=name,
            gpu=self._machine.gpu,
            compute_capability=self._machine.compute_capability,
            tensorrt=self._machine.tensorrt,
            driver=driver_version(),
            torch=torch.__version__,
            triton=version("triton") if plugins else None,
            precision=graph.precision,
            profiles=tuple(profiles),
            sources=graph.sources(),
            plan_sha256=sha256_of(plan),
            plugins=plugins,
            refittable=refittable,
            onnx=str(settings.onnx.resolve()),
            options=(*settings.options, "--network", name),
        )
        metadata.save(settings.engines)
        return metadata


def driver_version() -> str:
    """Release of the GPU's driver, such as `580.159`; `unknown` where the kernel does not say."""
    try:
        words = DRIVER.read_text("utf-8").split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")
