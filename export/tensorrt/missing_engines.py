"""Engines that a repository wants and nobody has built yet: from checkpoint to plans in one go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...python_backends.networks.checkpoint import Checkpoint
from ...python_backends.tensorrt.tensor_names import DECODER, ENCODER
from ...python_backends.tensorrt.versions import require_gpu, require_tensorrt
from ..repository.engine_checks import controlnet_rows, shard_rows, users_of
from .engines import BuildSettings, EngineBuilder
from .profiles import parse_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ..repository.serving_options import ServedPipeline

ONNX = "onnx"
"""Below the directory of the engines: what they are built from."""


def build_missing(pipelines: Mapping[str, ServedPipeline]) -> Iterator[Path]:
    """Builds the engines of every pipeline with runtime `tensorrt` whose directory has none, for its default size.

    Engines that are there are left alone. They take the largest batches that the repository allows, and are tuned for
    two rows: a request alone.

    Yields:
        Plans, as they are built.

    Raises:
        TensorRTUnavailableError: Without TensorRT or a GPU; nothing is written then.
        BuildError: If TensorRT fails.
        OnnxExportError, UnexportableError: If a network has no graph.
    """
    for served in pipelines.values():
        engines = served.options.engines
        if engines is None or any(engines.glob("*.plan")):
            continue
        require_tensorrt()
        require_gpu(served.options.unet_gpus[0])
        yield from _build(served, pipelines, engines)


def _build(served: ServedPipeline, pipelines: Mapping[str, ServedPipeline], engines: Path) -> Iterator[Path]:
    from ..onnx.checkpoint_export import OnnxOptions, export_onnx

    checkpoint, options = served.checkpoint, served.options
    networks = {
        each.name: each.path
        for each in options.controlnets
        if each.gpus and each.url is None and not each.control_modes
    }
    if not (engines / ONNX / "export.json").is_file():
        export_onnx(checkpoint, engines / ONNX, OnnxOptions(options.dtype, networks))
    rows = dict.fromkeys((ENCODER, DECODER), shard_rows(served))
    rows |= {f"controlnet_{name}": controlnet_rows(users_of(name, pipelines)) for name in networks}
    for most in sorted(set(rows.values())):
        builder = EngineBuilder(_settings(checkpoint, engines, options.unet_gpus[0], most))
        for name in [each for each, number in rows.items() if number == most]:
            builder.build(name)
            yield engines / f"{name}.plan"


def _settings(checkpoint: Checkpoint, engines: Path, gpu: int, most: int) -> BuildSettings:
    height, width = (side // checkpoint.vae_scale_factor for side in checkpoint.default_size)
    asked = {"--rows": f"1:2:{most}", "--latents": f"{height}x{width}", "--device": str(gpu)}
    return BuildSettings(
        onnx=engines / ONNX,
        engines=engines,
        rows=parse_rows(asked["--rows"]),
        latents=(height, width),
        device=gpu,
        options=tuple(word for pair in asked.items() for word in pair),
    )
