"""Command line of the ControlNets: train them, measure them."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

if TYPE_CHECKING:
    from .controls import Kind

app = typer.Typer(help=__doc__, no_args_is_help=True)
console = Console()
log = logging.getLogger(__name__)

Kinds = Annotated[list[str] | None, typer.Argument(help="edges, layout; default: both.")]
CONTROLNETS = Path(__file__).parents[1] / "controlnets"


def _chosen(names: list[str] | None) -> list[Kind]:
    from .controls import KINDS

    if unknown := set(names or ()) - set(KINDS):
        raise typer.BadParameter(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    return [kind for kind in KINDS if not names or kind in names]


@app.command()
def train(
    kinds: Kinds = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the weights, and of the checkpoints to resume from, 80 MB each.")
    ] = Path("out/controlnets"),
    workers: Annotated[int, typer.Option(help="Threads that share batches; on CPUs: the cores.")] = 1,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; default: those of the committed weights.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest; default: the committed weights'.")] = None,
    go_on: Annotated[bool, typer.Option(help="Resume from the checkpoints in OUT, not from nothing.")] = False,
    pictures: Annotated[int | None, typer.Option(help="Pictures in the training set.")] = None,
) -> None:
    """Trains ControlNets for the committed weights, in diffusers' format."""
    import torch

    from ..pipeline import load_pipeline
    from .training import Settings, train_controlnet

    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console)])
    torch.set_num_threads(1)  # `workers` shares out the cores; operators of two threads each would wait for each other
    usual = Settings()
    settings = Settings(
        steps=usual.steps if steps is None else steps,
        learning_rate=learning_rate or usual.learning_rate,
        pictures=pictures or usual.pictures,
        seed=seed,
        workers=workers,
    )
    for kind in _chosen(kinds):
        figures = train_controlnet(load_pipeline(), kind, out, settings, go_on)
        log.info("%s: %s", kind, figures)
        report = out / "training.json"
        known = json.loads(report.read_text()) if report.exists() else {}
        report.write_text(json.dumps(known | {kind: figures}, indent=2, sort_keys=True) + "\n")


@app.command()
def evaluate(
    kinds: Kinds = None,
    prompts: Annotated[int, typer.Option(help="How many held-out prompts.")] = 100,
    folder: Annotated[Path, typer.Option(help="Folder of the weights.")] = CONTROLNETS,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="PNG: 8 prompts without ControlNet, controls and pictures with them.")
    ] = None,
) -> None:
    """Measures adherence and obedience on held-out prompts, without ControlNets, with each, and with both."""
    from ..evaluate import contact_sheet
    from .evaluate import SHEET_COLUMNS
    from .evaluate import evaluate as run

    figures, pictures = run(_chosen(kinds), prompts, folder)
    figures["command"] = " ".join(["python -m swiftdiffusion.export.demo", *sys.argv[1:]])
    table = Table("ControlNets", "follows edges", "follows layout", "everything right")
    for way, found in figures["with"].items():
        scores = (f"{found['adherence'][kind]['mean']:.3f}" for kind in ("edges", "layout"))
        table.add_row(way, *scores, f"{found['right']['everything']:.1%}")
    console.print(table)
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")
    if sheet is not None:
        contact_sheet(pictures, SHEET_COLUMNS).save(sheet)
