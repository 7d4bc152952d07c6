"""`swiftdiffusion export-onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export_onnx(
    checkpoint: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="A diffusers-format SDXL or SD 1.5 directory.")
    ],
    output: Annotated[Path, typer.Option(help="A new or empty directory for the graphs.")],
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    controlnet: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="A ControlNet to export as well; repeatable.")
    ] = None,
    fixed: Annotated[bool, typer.Option("--fixed", help="Graphs for just this batch and size; else for any.")] = False,
    height: Annotated[int | None, typer.Option(min=1, help="Of the pictures; else the checkpoint's.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Of the pictures; else the checkpoint's.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Batch; a picture with guidance takes 2.")] = 2,
    norms: Annotated[
        str, typer.Option(help="What norms mean where they are no plugins: reduce or instance; the same to ONNX.")
    ] = "reduce",
) -> None:
    """Write a checkpoint's networks as ONNX graphs, with fused operators as nodes that TensorRT takes as plugins."""
    from .errors import OnnxExportError, require_onnx

    try:
        require_onnx("export-onnx")
    except OnnxExportError as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from None
    controlnets = _controlnets(controlnet or [])

    from ...python_backends.common.library_messages import silence_libraries
    from ...python_backends.controlnets.weights import ControlNetFileError
    from ...python_backends.networks.checkpoint import Checkpoint, CheckpointError
    from .checkpoint_export import OnnxOptions
    from .checkpoint_export import export_onnx as write

    silence_libraries()  # also that float16 does not run on a CPU: it need not
    options = OnnxOptions(
        dtype=dtype, controlnets=controlnets, height=height, width=width, rows=rows, dynamic=not fixed, norms=norms
    )
    try:
        names = write(Checkpoint(checkpoint.resolve()), output, options)
    except (CheckpointError, ControlNetFileError, OnnxExportError) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{output}: {', '.join(names)}")
    sizes = "" if fixed else " --latents HEIGHTxWIDTH"
    typer.echo(f"engines of them: swiftdiffusion build-engines --runtime … --onnx {output} --engines …{sizes}")


def _controlnets(given: list[str]) -> dict[str, Path]:
    from ..repository.controlnet_placement import NAME

    found: dict[str, Path] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not (NAME.fullmatch(name) and path):
            raise typer.BadParameter(f'--controlnet is "{text}"; wanted: NAME=PATH')
        if "@" in path and not Path(path).exists():
            raise typer.BadParameter(f'--controlnet is "{text}"; wanted: NAME=PATH, without a place')
        if name in found:
            raise typer.BadParameter(f"--controlnet names {name} twice; wanted: a name of its own for each")
        found[name] = Path(path)
    return found
