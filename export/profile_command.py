"""`swiftdiffusion profile-lora`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PROMPTS = (
    "a photo of a cat sitting on a chair",
    "a city street at night in the rain",
    "portrait of an old man, detailed",
    "a bowl of fruit on a wooden table",
)
"""Drawn where no prompts are given."""


def profile_lora(
    checkpoint: Annotated[Path, typer.Option(help="The diffusers-format directory that is served.")],
    loras: Annotated[Path, typer.Option(help="Directory of the LoRA catalogue.")],
    names: Annotated[list[str] | None, typer.Argument(help="LoRAs of the catalogue; none: all.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; repeat it for several.")] = None,
    steps: Annotated[int | None, typer.Option(min=2, help="Steps; else the pipeline's own.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0, help="Guidance; else the own.")] = None,
    scale: Annotated[float, typer.Option(help="The LoRA's scale.")] = 1.0,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Similarity below which the LoRA matters.")] = 0.99,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
) -> None:
    """Find the step at which a LoRA begins to matter, and keep it beside the file as its default bound."""
    import torch

    from ..python_backends.common.errors import InvalidRequestError
    from ..python_backends.common.library_messages import silence_libraries
    from ..python_backends.lora.files.textual_inversion import holds_textual_inversion
    from ..python_backends.lora.loading.adapter_config import local_settings
    from ..python_backends.lora.loading.catalogue import Catalogue, CatalogueError
    from ..python_backends.networks.checkpoint import Checkpoint, CheckpointError
    from ..python_backends.request.completed import CompletedRequest
    from .profile.local_pipeline import LocalPipeline
    from .profile.lora_profile import profile_lora as measure

    silence_libraries()
    try:
        catalogue = Catalogue(loras)
        entries = [catalogue.entry(name) for name in names or catalogue.names()]
        served = Checkpoint(checkpoint.resolve())
        own_steps, own_guidance = served.pipeline_defaults
        height, width = served.default_size
        requests = [
            CompletedRequest(
                run_id=str(number),
                prompt=text,
                negative_prompt=None,
                seed=number,
                steps=steps or own_steps,
                guidance_scale=own_guidance if guidance_scale is None else guidance_scale,
                height=height,
                width=width,
                scheduler=None,
            )
            for number, text in enumerate(prompt or PROMPTS)
        ]
        with LocalPipeline(served, torch.device(device), getattr(torch, dtype)) as pipeline:
            for entry in entries:
                if entry.is_remote:
                    typer.secho(f"{entry.name} lies elsewhere and is left out: {entry.location}", fg="yellow", err=True)
                    continue
                if holds_textual_inversion(Path(entry.location)):
                    typer.secho(f"{entry.name} is a textual inversion embedding and is left out", fg="yellow", err=True)
                    continue
                outside = local_settings(entry)
                profile = measure(pipeline, Path(entry.location), requests, scale, threshold, outside)
                written = profile.save(loras / f"{entry.name}.safetensors")
                profile.draw(written.with_suffix(".png"), f"{entry.name}, scale {scale:g}")
                typer.echo(f"{entry.name}: bound {profile.bound} of {profile.steps} steps; {written}")
    except (CatalogueError, CheckpointError, InvalidRequestError) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from None
