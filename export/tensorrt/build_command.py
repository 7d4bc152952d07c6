"""`swiftdiffusion build-engines`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ...python_backends.tensorrt.metadata import EngineMetadata


def build_engines(
    onnx: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Directory of the ONNX files.")],
    engines: Annotated[Path, typer.Option(help="Where to write the engines.")],
    rows: Annotated[
        str, typer.Option(help="Batch sizes: 1,2 for an engine tuned to each; 1:2:8 for 1 to 8, best at 2.")
    ] = "1,2",
    latents: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH in latent cells (pixels ÷ 8), if the ONNX files leave them open.")
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option(help="Which to build, such as unet_encoder; repeatable; else all.")
    ] = None,
    plugins: Annotated[
        bool, typer.Option(help="This project's kernels as plugins; else TensorRT's own in their place.")
    ] = True,
    refit: Annotated[
        bool, typer.Option(help="Engines that take LoRAs, as serving wants them; else just to compare speeds.")
    ] = True,
    workspace_mib: Annotated[int | None, typer.Option(min=1, help="Most scratch memory of a layer; else all.")] = None,
    device: Annotated[int, typer.Option(min=0, help="Number of the GPU.")] = 0,
) -> None:
    """Build TensorRT engines from ONNX files, on a GPU of the kind that will serve."""
    from rich.progress import Progress

    from ...kernels.triton_language import MissingTritonError
    from ...python_backends.tensorrt.metadata import EngineMismatchError
    from ...python_backends.tensorrt.versions import TensorRTUnavailableError
    from .engines import BuildError, BuildSettings, EngineBuilder
    from .graph import GraphError, names
    from .profiles import parse_latents, parse_rows

    try:
        profiles, size = parse_rows(rows), None if latents is None else parse_latents(latents)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    settings = BuildSettings(
        onnx=onnx,
        engines=engines,
        rows=profiles,
        latents=size,
        plugins=plugins,
        refit=refit,
        workspace_bytes=None if workspace_mib is None else workspace_mib * 2**20,
        device=device,
        options=_options(rows, latents, plugins, refit, workspace_mib, device),
    )
    try:
        found = names(onnx)
        if not found or (unknown := sorted(set(network or ()) - set(found))):
            wanted = ", ".join(unknown) if found else "any network"
            raise GraphError(f"{onnx} has no ONNX file of {wanted}; there: {', '.join(found) or 'none'}")
        builder = EngineBuilder(settings)
        with Progress(transient=True) as progress:
            for name in progress.track(network or found, description="building"):
                metadata = builder.build(name)
                progress.console.print(_summary(metadata, engines), soft_wrap=True, highlight=False)
    except (BuildError, EngineMismatchError, GraphError, MissingTritonError, TensorRTUnavailableError) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"compare them: swiftdiffusion verify-engines --onnx {onnx} --engines {engines}")


def _summary(metadata: EngineMetadata, engines: Path) -> str:
    plan = engines / f"{metadata.name}.plan"
    return (
        f"{plan}: {plan.stat().st_size / 2**20:.0f} MiB, {metadata.precision}, "
        f"{len(metadata.refittable)} refittable weights, plugins: {', '.join(metadata.plugins) or 'none'}"
    )


def _options(
    rows: str, latents: str | None, plugins: bool, refit: bool, workspace_mib: int | None, device: int
) -> tuple[str, ...]:
    """What to give `build-engines`, besides directories, for the same engines."""
    options = ["--rows", rows]
    if latents is not None:
        options += ["--latents", latents]
    if not plugins:
        options.append("--no-plugins")
    if not refit:
        options.append("--no-refit")
    if workspace_mib is not None:
        options += ["--workspace-mib", str(workspace_mib)]
    if device:
        options += ["--device", str(device)]
    return tuple(options)
