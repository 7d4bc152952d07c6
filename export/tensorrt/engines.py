"""Engines from ONNX files."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...python_backends.common.filesystem import replace_bytes, sha256_of
from ...python_backends.tensorrt.flavours import TENSORRT, Flavour
from ...python_backends.tensorrt.metadata import EngineMetadata, Machine
from .graph import Graph, fixed_shapes
from .plugins import register_plugins
from .profiles import profile

if TYPE_CHECKING:
    from ...python_backends.tensorrt.metadata import Bounds
    from .profiles import Latents, Rows

TIMING_CACHE = "timing.cache"
"""File among the engines with how fast kernels were: a second build with the same layers takes a fraction."""

INPUTS, LINEAR, CONSTANT = WEIGHTS = ("inputs", "linear", "constant")
"""Of the weights that LoRAs adapt, which ones engines read from outside: all, those of linear layers, none."""

logger = logging.getLogger(__name__)


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
        latents: Sizes of the latents; None if the ONNX files fix them.
        flavour: What builds.
        capabilities: Compute capabilities that the engines are for, where the flavour has a choice; none: its own.
        weights: Of WEIGHTS.
        plugins: Whether our operators are plugins, where the flavour has any; else their function bodies are built.
        workspace_bytes: Most scratch memory that a layer may take; None for all of the GPU's.
        device: Number of the GPU, where one is needed.
        options: The command line's, for the message of an engine that is refused elsewhere.
    """

    onnx: Path
    engines: Path
    rows: tuple[Rows, ...]
    latents: Latents | None = None
    flavour: Flavour = TENSORRT
    capabilities: tuple[str, ...] = ()
    weights: str = INPUTS
    plugins: bool = True
    workspace_bytes: int | None = None
    device: int = 0
    options: tuple[str, ...] = ()


class EngineBuilder:
    """Builds engines, one after the other."""

    def __init__(self, settings: BuildSettings) -> None:
        """Registers the plugins.

        Raises:
            TensorRTUnavailableError: Without TensorRT or a GPU that it needs, or for compute capabilities that it does
                not know.
            BuildError: If TensorRT gives no builder.
        """
        import torch

        self._settings, flavour = settings, settings.flavour
        for capability in settings.capabilities:
            flavour.check_capability(capability)
        self._trt, self._log = flavour.require(), flavour.log
        self._kinds = [self._kind(capability) for capability in settings.capabilities]
        self._plugins = settings.plugins and flavour.plugins
        if flavour.capabilities:
            self._machine = Machine(None, None, self._trt.__version__)
            self._capabilities = settings.capabilities
        else:
            self._machine = Machine.here(flavour, settings.device)
            self._capabilities = (str(self._machine.compute_capability),)
            torch.cuda.set_device(settings.device)
        if self._plugins:
            register_plugins(int(self._capabilities[0].replace(".", "")))
        try:
            self._builder = self._trt.Builder(self._log)
        except TypeError as error:
            raise BuildError(f"{flavour.title} gives no builder: {self._log.said()}") from error
        settings.engines.mkdir(parents=True, exist_ok=True)

    def build(self, name: str) -> EngineMetadata:
        """Writes `NAME.plan` and `NAME.json`.

        Where TensorRT does not take convolutions whose weights come from outside, they stay constant: LoRAs that adapt
        them are refused then.

        Raises:
            BuildError: If TensorRT fails.
            GraphError: If the ONNX file does not fit the settings.
        """
        graph, settings = Graph.read(self._settings.onnx, name), self._settings
        sources = graph.sources()
        profiles = [profile(graph.inputs, rows, settings.latents) for rows in settings.rows]
        weights = [weight for weight, shape in graph.weights.items() if _is_input(settings.weights, len(shape))]
        linear = [weight for weight in weights if _is_input(LINEAR, len(graph.weights[weight]))]
        try:
            serialised = self._serialised(graph, profiles, weights)
        except BuildError as error:
            if weights == linear:
                raise
            logger.warning("%s; its convolutions stay constant", error)
            weights, serialised = linear, self._serialised(graph, profiles, linear)
        return self._write(graph, sources, serialised, profiles, weights)

    def _serialised(self, graph: Graph, profiles: list[dict[str, Bounds]], weights: list[str]) -> Any:
        """The plan."""
        trt, path = self._trt, graph.path
        shapes = {name: fixed_shapes(shape for each in profiles for shape in each[name]) for name in graph.inputs}
        network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._log)
        if not parser.parse(graph.for_engine(shapes, weights), str(path)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            said = "; ".join(f"{each.node_operator()} {each.node_name()}: {each.desc()}".strip() for each in errors)
            raise BuildError(f"{self._settings.flavour.title} does not take {path}: {said or self._log.said()}")
        config = self._config(network, profiles)
        serialised = self._builder.build_serialized_network(network, config)
        del parser  # it owns constants of the network until here
        if serialised is None:
            raise BuildError(f"{self._settings.flavour.title} builds no engine of {path}: {self._log.said()}")
        if self._settings.flavour.timing_cache and (cache := config.get_timing_cache()) is not None:
            (self._settings.engines / TIMING_CACHE).write_bytes(memoryview(cache.serialize()))
        return serialised

    def _config(self, network: Any, profiles: list[dict[str, Bounds]]) -> Any:
        trt, settings = self._trt, self._settings
        config = self._builder.create_builder_config()
        for flag in settings.flavour.builder_flags:
            config.set_flag(getattr(trt.BuilderFlag, flag))
        if self._kinds:
            config.num_compute_capabilities = len(self._kinds)
            for index, kind in enumerate(self._kinds):
                config.set_compute_capability(kind, index)
        if settings.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
        if settings.flavour.timing_cache:
            self._use_timings(config)
        taken = {network.get_input(index).name for index in range(network.num_inputs)}
        for bounds in profiles:
            made = self._builder.create_optimization_profile()
            for name, (low, best, high) in bounds.items():
                if name in taken:
                    made.set_shape(name, low, best, high)
            if config.add_optimization_profile(made) < 0:
                raise BuildError(f"TensorRT does not take the shapes {bounds}")
        return config

    def _kind(self, capability: str) -> Any:
        try:
            return getattr(self._trt.ComputeCapability, f"SM{capability.replace('.', '')}")
        except AttributeError:
            title = self._settings.flavour.title
            raise BuildError(f"{title} {self._trt.__version__} does not know compute capability {capability}") from None

    def _use_timings(self, config: Any) -> None:
        path = self._settings.engines / TIMING_CACHE
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            logger.warning("%s is of another GPU or TensorRT and is not used", path)
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    def _write(
        self, graph: Graph, sources: dict[str, str], made: Any, profiles: list[dict[str, Bounds]], weights: list[str]
    ) -> EngineMetadata:
        settings, name = self._settings, graph.path.stem
        plan = settings.engines / f"{name}.plan"
        replace_bytes(plan, memoryview(made))
        plugins = graph.plugins if self._plugins else ()
        metadata = EngineMetadata(
            name=name,
            runtime=settings.flavour.name,
            release=self._machine.release,
            gpu=self._machine.gpu,
            capabilities=self._capabilities,
            precision=graph.precision,
            profiles=tuple(profiles),
            weights=tuple(weights),
            constants=tuple(weight for weight in graph.weights if weight not in weights),
            digest=graph.digest,
            sources=sources,
            plan_sha256=sha256_of(plan),
            plugins=plugins,
            norms=graph.norms,
            onnx=str(settings.onnx.resolve()),
            options=(*settings.options, "--network", name),
        )
        metadata.save(settings.engines)
        return metadata


def _is_input(weights: str, axes: int) -> bool:
    """Whether a weight of so many axes comes from outside."""
    return weights == INPUTS or (weights == LINEAR and axes == 2)
