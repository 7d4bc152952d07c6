"""`swiftdiffusion export`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

_PLACES = "Where things run"
_LORAS = "LoRAs and ControlNets"
_EDITING = "Editing"


def export(
    repository: Annotated[Path, typer.Option(help="Where to write the model repository.")],
    checkpoint: Annotated[Path | None, typer.Option(help="A diffusers-format SDXL or SD 1.5 directory.")] = None,
    deployment: Annotated[
        Path | None, typer.Option(help="A TOML file that says all the rest; for several pipelines in one repository.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the public model; else sdxl or sd15.")] = None,
    unet_shards: Annotated[int | None, typer.Option(help="UNet instances; 2.", rich_help_panel=_PLACES)] = None,
    unet_gpus: Annotated[
        str | None, typer.Option(help="GPUs of the shards, such as 0,1; else the CPU.", rich_help_panel=_PLACES)
    ] = None,
    text_encoder_gpu: Annotated[
        int | None, typer.Option(help="GPU of the text encoders; else the first shard's.", rich_help_panel=_PLACES)
    ] = None,
    vae_gpu: Annotated[
        int | None, typer.Option(help="GPU of the VAE; else the first shard's.", rich_help_panel=_PLACES)
    ] = None,
    vae_float16: Annotated[
        bool,
        typer.Option(
            "--vae-float16", help="Decode in float16 on a GPU; else as diffusers does.", rich_help_panel=_PLACES
        ),
    ] = False,
    threads: Annotated[int | None, typer.Option(help="Of each CPU backend; 1.", rich_help_panel=_PLACES)] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16, bfloat16; float16 on GPUs, else float32.", rich_help_panel=_PLACES),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="torch; compile (torch.compile); tensorrt or tensorrt-rtx, with --engines.", rich_help_panel=_PLACES
        ),
    ] = None,
    engines: Annotated[
        Path | None,
        typer.Option(help="TensorRT engines, from build-engines; built here if it is empty.", rich_help_panel=_PLACES),
    ] = None,
    fp8: Annotated[
        bool,
        typer.Option(
            "--fp8", help="Transformers' linear layers in 8-bit floats; changes pictures.", rich_help_panel=_PLACES
        ),
    ] = False,
    max_batch_size: Annotated[int | None, typer.Option(help="Requests that denoise together; 8.")] = None,
    steps: Annotated[int | None, typer.Option(help="Default steps; else the pipeline's own.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Default guidance; else the own.")] = None,
    max_size: Annotated[
        int | None, typer.Option(help="Largest height and width in pixels; else twice the checkpoint's, at least 512.")
    ] = None,
    ignored_parameters: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Request parameters that are let pass, such as headers that Triton forwards; else refused.",
        ),
    ] = None,
    slo_ms: Annotated[
        int | None,
        typer.Option(help="Refuse requests at once that would be answered later than this; else only TIMEOUT_MS."),
    ] = None,
    slo_factor: Annotated[
        float | None, typer.Option(help="The same, in times of what such a request takes alone.")
    ] = None,
    loras: Annotated[
        Path | None,
        typer.Option(help="Directory of LoRA files, and catalogue.json for those elsewhere.", rich_help_panel=_LORAS),
    ] = None,
    lora_bound: Annotated[
        int | None,
        typer.Option(
            help="Default k of bounded asynchronous LoRA loading; 0 waits and is exact.", rich_help_panel=_LORAS
        ),
    ] = None,
    lora_host_mib: Annotated[
        int | None, typer.Option(help="LoRAs kept ready in shared memory, MiB; 4096.", rich_help_panel=_LORAS)
    ] = None,
    lora_disk_mib: Annotated[
        int | None, typer.Option(help="Fetched LoRA files kept on disk, MiB; 65536.", rich_help_panel=_LORAS)
    ] = None,
    template_host_mib: Annotated[
        int | None,
        typer.Option(
            help="What is known of edited pictures, in shared memory, MiB; 4096. 0: nothing.", rich_help_panel=_EDITING
        ),
    ] = None,
    template_disk_mib: Annotated[
        int | None, typer.Option(help="The same on disk, beside that, MiB; 0.", rich_help_panel=_EDITING)
    ] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH[@PLACE]",
            help="A ControlNet that requests may name; repeatable. PLACE is 0,1 for GPUs, cpu:2 for processes, or "
            "grpc://HOST:PORT for another server.",
            rich_help_panel=_LORAS,
        ),
    ] = None,
    controlnet_timeout: Annotated[
        float | None,
        typer.Option(help="Longest that a step waits for a ControlNet, seconds; 60.", rich_help_panel=_LORAS),
    ] = None,
    only_controlnets: Annotated[
        bool,
        typer.Option(
            "--only-controlnets", help="Write the ControlNets alone, for other servers to call.", rich_help_panel=_LORAS
        ),
    ] = False,
) -> None:
    """Write a Triton model repository that serves a checkpoint."""
    options = {
        "unet_shards": unet_shards,
        "unet_gpus": unet_gpus,
        "text_encoder_gpu": text_encoder_gpu,
        "vae_gpu": vae_gpu,
        "vae_float16": vae_float16 or None,
        "threads": threads,
        "dtype": dtype,
        "runtime": runtime,
        "engines": engines,
        "fp8": fp8 or None,
        "max_batch_size": max_batch_size,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "max_size": max_size,
        "loras": loras,
        "lora_bound": lora_bound,
        "lora_host_mib": lora_host_mib,
        "lora_disk_mib": lora_disk_mib,
        "template_host_mib": template_host_mib,
        "template_disk_mib": template_disk_mib,
        "controlnet_timeout": controlnet_timeout,
        "ignored_parameters": ignored_parameters,
        "slo_ms": slo_ms,
        "slo_factor": slo_factor,
    }
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if (checkpoint is None) == (deployment is None) or (deployment and (given or controlnet or name)):
        raise typer.BadParameter("wanted: --checkpoint with options, or --deployment FILE, which says all the rest")

    from ..kernels.triton_language import MissingTritonError
    from ..python_backends.common.filesystem import is_plain
    from ..python_backends.common.library_messages import silence_libraries
    from ..python_backends.launcher.checks import Status
    from ..python_backends.launcher.needs import check_needs
    from ..python_backends.networks.checkpoint import CheckpointError
    from ..python_backends.networks.speed import gflops_per_second
    from ..python_backends.tensorrt.flavours import TensorRTUnavailableError
    from .onnx.errors import OnnxExportError
    from .repository.deployment import Deployment, DeploymentError
    from .repository.pipeline_models import linear_preview
    from .repository.writing import RepositoryError, write_pipelines
    from .tensorrt.engines import BuildError
    from .tensorrt.graph import GraphError
    from .tensorrt.missing_engines import build_missing

    silence_libraries()
    try:
        asked = (
            Deployment.from_options(name, given | {"checkpoint": checkpoint}, controlnet or ())
            if deployment is None
            else Deployment.read(deployment)
        )
        pipelines = asked.resolve()
        for plan in build_missing(pipelines):
            typer.echo(str(plan))
        models = write_pipelines(pipelines, repository, only_controlnets)
    except (
        CheckpointError,
        DeploymentError,
        RepositoryError,
        TensorRTUnavailableError,
        MissingTritonError,
        OnnxExportError,
        GraphError,
        BuildError,
    ) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{repository}: {', '.join(models)}")
    for public, served in pipelines.items():
        if not only_controlnets:
            off = linear_preview(served.checkpoint).error
            typer.echo(f"linear previews of {public}: off by {off:.3f} of a colour's range (root mean square)")
        if served.checkpoint.has_safety_checker:
            typer.secho(f"note: the safety checker of {public} is not run by this server", fg="yellow", err=True)
    if not is_plain(repository.resolve()):
        typer.secho(
            "note: Triton's Python backend cannot use a repository's path with blanks, quotes or letters beyond ASCII; "
            "`swiftdiffusion serve` gives it another name, a tritonserver that is started otherwise does not",
            fg="yellow",
            err=True,
        )
    for check in check_needs(repository, gflops_per_second):
        typer.echo(f"{check.subject}: {check.found}")
        if check.status is not Status.OK:
            typer.secho(f"note: {check.advice}", fg="yellow", err=True)
    typer.echo(f"serve it: swiftdiffusion serve --repository {shlex.quote(str(repository))}")
