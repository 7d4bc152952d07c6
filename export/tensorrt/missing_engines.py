"""Engines that a repository wants and nobody has built yet: from checkpoint to plans in one go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...python_backends.tensorrt.flavours import FLAVOURS, require_gpu
from ..onnx.errors import require_onnx
from ..onnx.sources import check_export
from ..repository.engine_checks import wanted_engines
from .engines import BuildSettings, EngineBuilder
from .profiles import parse_latents, parse_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ..repository.serving_options import ServedPipeline

ONNX = "onnx"
"""Below the directory of the engines: what they are built from."""


def build_missing(pipelines: Mapping[str, ServedPipeline]) -> Iterator[Path]:
    """Builds the engines that pipelines want and their directories lack.

    They take the largest batches that the repository allows, and are tuned for two rows: a request alone. Those for one
    kind of GPU take pictures of the default size; others all sizes.

    Yields:
        Plans, as they are built.

    Raises:
        TensorRTUnavailableError: Without TensorRT or a GPU that it needs; nothing is written then.
        BuildError: If TensorRT fails.
        OnnxExportError: If a network has no graph of these options, or those that are there are of another checkpoint.
    """
    for served in pipelines.values():
        options, engines = served.options, served.options.engines
        if engines is None:
            continue
        networks = {each.name: each.path for each in options.controlnets if each.has_engine}
        exported = check_export(engines / ONNX, served.checkpoint, networks, options.dtype)
        rows = wanted_engines(served, pipelines)
        lacking = {name: most for name, most in rows.items() if not (engines / f"{name}.plan").is_file()}
        if not lacking:
            continue
        flavour = FLAVOURS[options.runtime]
        flavour.require()
        if not flavour.capabilities:
            require_gpu(options.unet_gpus[0])
        if not exported:
            require_onnx("building engines")
            from ..onnx.checkpoint_export import OnnxOptions, export_onnx

            export_onnx(served.checkpoint, engines / ONNX, OnnxOptions(options.dtype, networks))
        for most in sorted(set(lacking.values())):
            builder = EngineBuilder(_settings(served, engines, most))
            for name in [each for each, number in lacking.items() if number == most]:
                builder.build(name)
                yield engines / f"{name}.plan"


def _settings(served: ServedPipeline, engines: Path, most: int) -> BuildSettings:
    checkpoint, options = served.checkpoint, served.options
    flavour = FLAVOURS[options.runtime]

    def cells(*pixels: int) -> str:
        return "x".join(str(side // checkpoint.vae_scale_factor) for side in pixels)

    latents = cells(*checkpoint.default_size)
    if flavour.capabilities:
        multiple = checkpoint.even_size_multiple
        largest = options.max_size // multiple * multiple
        latents = f"{cells(multiple, multiple)}:{latents}:{cells(largest, largest)}"
    asked = {"--runtime": flavour.name, "--rows": f"1:{min(2, most)}:{most}", "--latents": latents}
    if not flavour.capabilities:
        asked["--device"] = str(options.unet_gpus[0])
    return BuildSettings(
        onnx=engines / ONNX,
        engines=engines,
        rows=parse_rows(asked["--rows"]),
        latents=parse_latents(latents),
        flavour=flavour,
        device=options.unet_gpus[0],
        options=tuple(word for pair in asked.items() for word in pair),
    )
