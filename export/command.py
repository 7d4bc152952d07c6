"""`swiftdiffusion export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[Path, typer.Option(help="A diffusers-format SDXL or SD 1.5 directory.")],
    repository: Annotated[Path, typer.Option(help="Where to write the model repository.")],
    unet_shards: Annotated[int, typer.Option(min=1, max=64, help="Number of UNet instances.")] = 2,
    gpus: Annotated[str, typer.Option(help="GPUs of the shards, such as 0,1; empty: CPU.")] = "",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each CPU backend.")] = 1,
    dtype: Annotated[str | None, typer.Option(help="float32, float16, bfloat16; default by device.")] = None,
    max_batch_size: Annotated[int, typer.Option(min=1, max=64, help="Requests that denoise together.")] = 8,
    steps: Annotated[int | None, typer.Option(min=1, help="Default steps; else the pipeline's own.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0, help="Default guidance; else the own.")] = None,
    loras: Annotated[
        Path | None, typer.Option(help="Directory of LoRA files, and of catalogue.json for those elsewhere.")
    ] = None,
    lora_bound: Annotated[
        int, typer.Option(min=0, help="Default k of bounded asynchronous LoRA loading; 0 waits and is exact.")
    ] = 0,
    lora_host_mib: Annotated[int, typer.Option(min=1, help="LoRAs kept ready in shared memory, MiB.")] = 4096,
    lora_disk_mib: Annotated[int, typer.Option(min=1, help="Fetched LoRA files kept on disk, MiB.")] = 65536,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR[@GPUS]", help="A ControlNet that requests may name; repeatable."),
    ] = None,
    controlnet_timeout: Annotated[
        float, typer.Option(min=0.1, help="Longest that a step waits for a ControlNet, seconds.")
    ] = 60.0,
    max_size: Annotated[
        int | None,
        typer.Option(min=8, help="Largest height and width in pixels; else twice the checkpoint's, at least 512."),
    ] = None,
) -> None:
    """Write a Triton model repository that serves a checkpoint."""
    from ..python_backends.checkpoint import Checkpoint, CheckpointError
    from .controlnets import served_controlnets
    from .repository import RepositoryError, write_repository
    from .serving_options import ServingOptions

    try:
        served = Checkpoint(checkpoint.resolve())
        pipeline_steps, pipeline_guidance = served.pipeline_defaults
        placed_on = _gpu_list(gpus)
        options = ServingOptions(
            unet_shards=unet_shards,
            gpus=placed_on,
            threads=threads,
            dtype=_dtype(dtype, bool(placed_on)),
            max_batch_size=max_batch_size,
            steps=pipeline_steps if steps is None else steps,
            guidance_scale=pipeline_guidance if guidance_scale is None else guidance_scale,
            max_size=max(512, 2 * max(served.default_size)) if max_size is None else max_size,
            loras=_catalogue(loras),
            lora_bound=lora_bound,
            lora_host_bytes=lora_host_mib * 2**20,
            lora_disk_bytes=lora_disk_mib * 2**20,
            controlnets=served_controlnets(controlnet or (), served),
            controlnet_timeout_s=controlnet_timeout,
        )
        models = write_repository(served, repository, options)
    except (CheckpointError, RepositoryError, ValueError) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{repository}: {', '.join(models)}")
    if served.has_safety_checker:
        typer.secho("note: the checkpoint's safety checker is not run by this server", fg="yellow", err=True)
    typer.echo(f"serve it: swiftdiffusion serve --repository {repository}")


def _catalogue(directory: Path | None) -> Path | None:
    """The LoRA catalogue's directory, once it is seen to be readable."""
    from ..python_backends.lora.catalogue import Catalogue, CatalogueError

    try:
        Catalogue(directory)
    except CatalogueError as error:
        raise ValueError(str(error)) from error
    return directory


def _gpu_list(text: str) -> tuple[int, ...]:
    try:
        gpus = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        gpus = (-1,)
    if any(gpu < 0 for gpu in gpus):
        raise typer.BadParameter(f'--gpus is "{text}"; allowed: indices such as 0,1, or nothing for the CPU')
    return gpus


def _dtype(name: str | None, on_gpu: bool) -> str:
    if name is None:
        return "float16" if on_gpu else "float32"
    if name not in ("float32", "float16", "bfloat16"):
        raise typer.BadParameter(f'--dtype is "{name}"; allowed: float32, float16, bfloat16')
    return name
