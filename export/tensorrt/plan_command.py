"""`swiftdiffusion plan-models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NETWORKS = ("vae_decoder", "text_encoder", "text_encoder_2")


def plan_models(
    onnx: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Directory of the ONNX files.")],
    engines: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Directory of the engines, from build-engines.")
    ],
    repository: Annotated[Path, typer.Option(help="Where to write the models: a repository of their own.")],
    gpu: Annotated[list[int] | None, typer.Option(min=0, help="An instance on each; repeatable; else GPU 0.")] = None,
) -> None:
    """Write VAE and text encoder engines as models that Triton serves by itself, without Python."""
    from ...python_backends.tensorrt.flavours import TENSORRT
    from ...python_backends.tensorrt.metadata import EngineMetadata, EngineMismatchError
    from .graph import Graph, GraphError
    from .plan_models import plan_config, write_plan_model

    if repository.exists() and any(repository.iterdir()):
        raise typer.BadParameter(f"--repository {repository} is not empty; wanted: a new or empty directory")
    built = [name for name in NETWORKS if (engines / f"{name}.plan").is_file()]
    try:
        if not built:
            raise EngineMismatchError(f"{engines} has no engine of {', '.join(NETWORKS)}; build-engines makes them")
        for name in built:
            metadata = EngineMetadata.read(engines, name)
            metadata.check_runtime(engines, TENSORRT.name)
            metadata.check_sources(engines, onnx)
            config = plan_config(name, metadata, Graph.read(onnx, name), tuple(gpu or [0]))
            typer.echo(str(write_plan_model(repository, engines, config, name)))
    except (EngineMismatchError, GraphError) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from None
