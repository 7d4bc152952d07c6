"""Parameters of the models that compute, and of what evaluates their networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .engine_checks import components_on_engines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .serving_options import ServedPipeline


def compute_parameters(served: ServedPipeline, dtype: str, reference: Callable[[Path], str]) -> dict[str, str]:
    """Parameters of a model that computes for a pipeline."""
    return {"checkpoint": reference(served.checkpoint.path), "dtype": dtype, "threads": str(served.options.threads)}


def runtime_parameters(served: ServedPipeline, gpu: int | None, reference: Callable[[Path], str]) -> dict[str, str]:
    """Parameters of a model that evaluates a UNet or ControlNet; what is on no GPU has no engine."""
    engines = None if gpu is None else served.options.engines
    runtime = "torch" if engines is None and served.options.engines is not None else served.options.runtime
    return {"runtime": runtime, "engines": "" if engines is None else reference(engines)}


def engine_parameters(served: ServedPipeline, gpu: int | None, reference: Callable[[Path], str]) -> dict[str, str]:
    """Parameters of a model that evaluates anything else; only engines take its modules' place."""
    return runtime_parameters(served, gpu, reference) if served.options.has_engines(gpu) else {}


def constant_parameters(served: ServedPipeline, reference: Callable[[Path], str]) -> dict[str, str]:
    """Parameters of a LoRA store: the engines whose constants no LoRA may change."""
    if served.options.engines is None:
        return {}
    components = ",".join(components_on_engines(served))
    return {"engines": reference(served.options.engines), "engine_components": components}
