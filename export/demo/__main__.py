"""Command line of the demo family: train it, measure it, look at it."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from .controlnet.command import app as controlnet_app
from .lora.command import app as lora_app

app = typer.Typer(help=__doc__, no_args_is_help=True)
app.add_typer(controlnet_app, name="controlnet")
app.add_typer(lora_app, name="lora")
console = Console()

Weights = Annotated[Path, typer.Option(help="Folder of the pipeline; default: the committed weights.")]
Scheduler = Annotated[
    str | None, typer.Option(help="euler, euler_a, ddim, dpmpp_2m or lcm; default: the checkpoint's.")
]
Steps = Annotated[int, typer.Option(help="Sampler steps.")]
Guidance = Annotated[float, typer.Option(help="Classifier-free guidance scale.")]
WEIGHTS = Path(__file__).parent / "weights"


def _parse_limits(text: str) -> dict[str, float]:
    try:
        return {stage: float(minutes) for stage, minutes in (part.split("=") for part in text.split(",") if part)}
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: expected stage=minutes pairs such as vae=15,unet=80") from error


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Where the pipeline goes; the training's state in OUT/work.")],
    minutes: Annotated[
        str, typer.Option(help="Limits by stage, such as text=13,vae=12,unet=80; stages without one run all steps.")
    ] = "",
    text_steps: Annotated[int | None, typer.Option(help="Optimiser steps of the text encoders.")] = None,
    vae_steps: Annotated[int | None, typer.Option(help="Optimiser steps of the autoencoder.")] = None,
    decoder_steps: Annotated[int | None, typer.Option(help="Optimiser steps of the decoder alone.")] = None,
    unet_steps: Annotated[int | None, typer.Option(help="Optimiser steps of the UNet.")] = None,
    pictures: Annotated[int | None, typer.Option(help="Pictures in the UNet's training set.")] = None,
    stages: Annotated[str, typer.Option(help="Stages to run, in this order.")] = "text,vae,decoder,latents,unet",
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads per operator; default: PyTorch's choice.")] = None,
    workers: Annotated[int, typer.Option(help="Threads that share batches; on CPUs: the cores.")] = 1,
) -> None:
    """Trains the family from nothing; run it again to go on after an interruption."""
    import torch

    from .training import Recipe
    from .training import train as run

    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console)])
    if threads:
        torch.set_num_threads(threads)
    sizes = {
        "text_steps": text_steps,
        "vae_steps": vae_steps,
        "decoder_steps": decoder_steps,
        "unet_steps": unet_steps,
        "pictures": pictures,
    }
    recipe = Recipe(
        **{name: size for name, size in sizes.items() if size is not None}, minutes=_parse_limits(minutes), seed=seed
    )
    run(out, recipe, device, tuple(stages.split(",")), workers)


@app.command()
def evaluate(
    weights: Weights = WEIGHTS,
    prompts: Annotated[int, typer.Option(help="How many held-out prompts.")] = 200,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    scheduler: Scheduler = None,
    steps: Steps = 20,
    guidance_scale: Guidance = 2.0,
    sweep_prompts: Annotated[int, typer.Option(help="Also try other samplers, scales and steps on so many.")] = 0,
) -> None:
    """Measures how many held-out prompts are drawn right."""
    from .evaluate import evaluate as run
    from .evaluate import sweep

    figures = run(weights, prompts, scheduler, steps, guidance_scale)
    figures["command"] = " ".join(["python -m swiftdiffusion.export.demo", *sys.argv[1:]])
    table = Table(
        "attribute", "all", *figures["right_by_number_of_items"], title=f"right in {prompts} held-out prompts"
    )
    for name, share in figures["right"].items():
        columns = [share, *(group[name] for group in figures["right_by_number_of_items"].values())]
        table.add_row(name, *(f"{value:.1%}" for value in columns))
    console.print(table)
    if sweep_prompts:
        figures["sweep"] = {"prompts": sweep_prompts} | sweep(weights, sweep_prompts)
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")


@app.command()
def contact_sheet(
    out: Annotated[Path, typer.Option(help="PNG file.")],
    weights: Weights = WEIGHTS,
    prompts: Annotated[int, typer.Option(help="How many held-out prompts.")] = 32,
    scheduler: Scheduler = None,
    steps: Steps = 20,
    guidance_scale: Guidance = 2.0,
) -> None:
    """Draws held-out prompts side by side and lists them with the checker's verdict."""
    from .evaluate import ATTRIBUTES, judge
    from .evaluate import contact_sheet as lay_out
    from .prompts import held_out_prompts

    judged = list(judge(weights, held_out_prompts(prompts), scheduler, steps, guidance_scale))
    table = Table("#", "prompt", "wrong")
    for number, (prompt, _, verdict) in enumerate(judged, start=1):
        wrong = [name for name in ATTRIBUTES[:-1] if not getattr(verdict, name)]
        table.add_row(str(number), prompt.text, ", ".join(wrong))
    console.print(table)
    lay_out([picture for _, picture, _ in judged]).save(out)


if __name__ == "__main__":
    app()
