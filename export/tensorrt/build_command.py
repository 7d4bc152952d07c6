"""`swiftdiffusion build-engines`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build_engines(
    onnx: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Directory of the ONNX files.")],
    engines: Annotated[Path, typer.Option(help="Where to write the engines.")],
    runtime: Annotated[
        str, typer.Option(help="tensorrt, on a GPU of the kind that will serve; tensorrt-rtx, on any machine.")
    ] = "tensorrt",
    rows: Annotated[
        str, typer.Option(help="Batch sizes: 1,2 for an engine tuned to each; 1:2:8 for 1 to 8, best at 2.")
    ] = "1,2",
    latents: Annotated[
        str | None,
        typer.Option(
            help="HEIGHTxWIDTH in latent cells (pixels ÷ 8), or LEAST:BEST:MOST of them, if the ONNX files leave them "
            "open."
        ),
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option(help="Which to build, such as unet_encoder; repeatable; else all.")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="Of the weights that LoRAs adapt, which are read from the network: inputs (all), linear (not those of "
            "convolutions), constant (none: takes no LoRAs)."
        ),
    ] = "inputs",
    capability: Annotated[
        list[str] | None,
        typer.Option(help="Compute capability to build for, such as 8.9; repeatable; of tensorrt-rtx."),
    ] = None,
    plugins: Annotated[
        bool, typer.Option(help="This project's kernels as plugins, of tensorrt; else TensorRT's own in their place.")
    ] = True,
    workspace_mib: Annotated[int | None, typer.Option(min=1, help="Most scratch memory of a layer; else all.")] = None,
    device: Annotated[int, typer.Option(min=0, help="Number of the GPU, of tensorrt.")] = 0,
) -> None:
    """Build TensorRT engines from ONNX files."""
    from rich.progress import Progress

    from ...kernels.triton_language import MissingTritonError
    from ...python_backends.tensorrt.flavours import FLAVOURS, TensorRTUnavailableError
    from ...python_backends.tensorrt.metadata import EngineMismatchError
    from .engines import WEIGHTS, BuildError, BuildSettings, EngineBuilder
    from .graph import GraphError, names
    from .profiles import parse_latents, parse_rows

    try:
        profiles, size = parse_rows(rows), None if latents is None else parse_latents(latents)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    for option, given, allowed in (("--runtime", runtime, FLAVOURS), ("--weights", weights, WEIGHTS)):
        if given not in allowed:
            raise typer.BadParameter(f"{option} is {given}; allowed: {', '.join(allowed)}")
    if capability and not FLAVOURS[runtime].capabilities:
        raise typer.BadParameter(f"--capability is given; wanted with it: --runtime tensorrt-rtx, not {runtime}")
    asked: dict[str, str | int | None] = {
        "--runtime": runtime,
        "--rows": rows,
        "--latents": latents,
        "--weights": weights,
        "--workspace-mib": workspace_mib,
        "--device": device or None,
    }
    options = [word for option, value in asked.items() if value is not None for word in (option, str(value))]
    options += [word for each in capability or () for word in ("--capability", each)]
    settings = BuildSettings(
        onnx=onnx,
        engines=engines,
        rows=profiles,
        latents=size,
        flavour=FLAVOURS[runtime],
        capabilities=tuple(capability or ()),
        weights=weights,
        plugins=plugins,
        workspace_bytes=None if workspace_mib is None else workspace_mib * 2**20,
        device=device,
        options=(*options, *([] if plugins else ["--no-plugins"])),
    )
    try:
        found = names(onnx)
        if not found or (unknown := sorted(set(network or ()) - set(found))):
            wanted = ", ".join(unknown) if found else "any network"
            raise GraphError(f"{onnx} has no ONNX file of {wanted}; there: {', '.join(found) or 'none'}")
        builder = EngineBuilder(settings)
        with Progress(transient=True) as progress:
            for name in progress.track(network or found, description="building"):
                built, plan = builder.build(name), engines / f"{name}.plan"
                said = f"{plan}: {plan.stat().st_size / 2**20:.1f} MiB, {built.precision}, weights from outside: "
                said += f"{len(built.weights)}, plugins: {', '.join(built.plugins) or 'none'}"
                said += f"; LoRAs of {len(built.constants)} weights are refused" if built.constants else ""
                progress.console.print(said, soft_wrap=True, highlight=False)
    except (BuildError, EngineMismatchError, GraphError, MissingTritonError, TensorRTUnavailableError) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"compare them, on a GPU that runs them: swiftdiffusion verify-engines --engines {engines}")
