"""Command line of the LoRAs: train them, measure them."""

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

app = typer.Typer(help=__doc__, no_args_is_help=True)
console = Console()
log = logging.getLogger(__name__)

Names = Annotated[list[str] | None, typer.Argument(help="hatched, night, outline, sunset; default: all.")]
LORAS = Path(__file__).parents[1] / "loras"


def _chosen(names: list[str] | None) -> list[str]:
    from .recipes import RECIPES

    if unknown := set(names or ()) - set(RECIPES):
        raise typer.BadParameter(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(RECIPES)}")
    return names or list(RECIPES)


@app.command()
def train(
    names: Names = None,
    out: Annotated[Path, typer.Option(help="Folder of the files.")] = LORAS,
    workers: Annotated[int, typer.Option(help="Threads that share batches; on CPUs: the cores.")] = 1,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; default: the recipe's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest; default: the recipe's.")] = None,
    go_on: Annotated[bool, typer.Option(help="Start from the files in OUT, not from nothing.")] = False,
    pictures: Annotated[int, typer.Option(help="Pictures in the training set.")] = 1500,
) -> None:
    """Trains LoRAs from the committed weights and saves each in its own file format."""
    from dataclasses import replace

    import torch

    from ..pipeline import load_pipeline
    from .formats import read_lora, save_lora
    from .recipes import RECIPES
    from .training import fresh_configs, train_lora

    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console)])
    torch.set_num_threads(1)  # `workers` shares out the cores; operators of two threads each would wait for each other
    for name in _chosen(names):
        recipe = RECIPES[name]
        recipe = replace(recipe, steps=steps or recipe.steps, learning_rate=learning_rate or recipe.learning_rate)
        pipeline = load_pipeline()
        path = out / f"{name}.safetensors"
        start = read_lora(path, pipeline) if go_on else None
        weights, figures = train_lora(pipeline, recipe, seed, workers, pictures, start)
        save_lora(weights, recipe, fresh_configs(recipe)["unet"], path, pipeline.unet.config.layers_per_block)
        report = out / "training.json"
        log.info("%s: %s, %.2f MB", name, figures, path.stat().st_size / 1e6)
        known = json.loads(report.read_text()) if report.exists() else {}
        runs = [*known.get(name, []), figures] if go_on else [figures]
        report.write_text(json.dumps(known | {name: runs}, indent=2, sort_keys=True) + "\n")


@app.command()
def evaluate(
    names: Names = None,
    prompts: Annotated[int, typer.Option(help="How many held-out prompts.")] = 100,
    comparisons: Annotated[int, typer.Option(help="How many of them for comparisons, such as diffusers' loader.")] = 50,
    folder: Annotated[Path, typer.Option(help="Folder of the files.")] = LORAS,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="PNG: 8 prompts without LoRA, below them with each.")] = None,
) -> None:
    """Measures style and obedience on held-out prompts, with and without each LoRA."""
    from ..evaluate import contact_sheet
    from .evaluate import evaluate as run

    figures, pictures = run(_chosen(names), prompts, comparisons, folder)
    figures["command"] = " ".join(["python -m swiftdiffusion.export.demo", *sys.argv[1:]])
    table = Table("LoRA", "applied", "style score", "lowest tenth", "everything right")
    for name, ways in figures["loras"].items():
        for way, found in ways.items():
            scores = (f"{found[key]:.3f}" for key in ("style_score", "lowest_style_scores"))
            table.add_row(name, way, *scores, f"{found['right']['everything']:.1%}")
    console.print(table)
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")
    if sheet is not None:
        contact_sheet(pictures).save(sheet)
