"""What a bound of asynchronous LoRA loading costs: pictures whose LoRA goes on before step k, for several k.

Every held-out prompt is denoised once without the LoRA; before step k a copy of the run goes on with it, as a request
does whose LoRA was ready just then. Measured against k = 0, which is exact: the LoRA's style score, whether the picture
shows what was asked for (the style taken back), and structural similarity.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from machine import describe
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from skimage.metrics import structural_similarity

from swiftdiffusion.export.demo.drawing import SIZE
from swiftdiffusion.export.demo.lora.checking import check_styled
from swiftdiffusion.export.demo.lora.recipes import RECIPES, Recipe
from swiftdiffusion.export.demo.lora.scores import style_score
from swiftdiffusion.export.demo.prompts import Prompt, held_out_prompts
from swiftdiffusion.export.profile.local_pipeline import LocalPipeline
from swiftdiffusion.python_backends.lora.loading.profiles import Profiles
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.request.completed import CompletedRequest

ROOT = Path(__file__).resolve().parents[1]
LORAS = ROOT / "export/demo/loras"
BATCH = 10
RESAMPLES = 2000
MEASURES = ("style_score", "right", "ssim")


def measure(
    pipeline: LocalPipeline,
    recipe: Recipe,
    prompts: list[Prompt],
    bounds: list[int],
    steps: int,
    guidance_scale: float,
) -> dict[int, dict[str, list[float]]]:
    """Per bound and measure, a value for every prompt."""
    loras = pipeline.add_lora(LORAS / f"{recipe.name}.safetensors")
    values: dict[int, dict[str, list[float]]] = {bound: defaultdict(list) for bound in bounds}
    for start in track(range(0, len(prompts), BATCH), recipe.name):
        chosen = prompts[start : start + BATCH]
        base = pipeline.start([_request(prompt, recipe, steps, guidance_scale) for prompt in chosen])
        exact: list[np.ndarray] = []
        for bound in bounds:
            while base[0].step < bound:
                pipeline.step(base, ())
            runs = base if bound == steps else pipeline.switch(base, loras)
            while not runs[0].done:
                pipeline.step(runs, loras)
            pictures = list(pipeline.decode(runs).numpy())
            exact = exact or pictures
            for picture, wanted, prompt in zip(pictures, exact, chosen, strict=True):
                verdict = check_styled(picture, prompt.scene, recipe.style)
                values[bound]["style_score"].append(style_score(picture, prompt.scene, recipe.style))
                values[bound]["right"].append(float(verdict.everything))
                values[bound]["ssim"].append(structural_similarity(picture, wanted, channel_axis=2))
    return values


def summarise(values: dict[int, dict[str, list[float]]], seed: int = 0) -> list[dict[str, Any]]:
    """Means, and for style and correctness the 95 % interval of the difference to k = 0 (paired bootstrap)."""
    random = np.random.default_rng(seed)
    rows = []
    for bound, measured in values.items():
        row: dict[str, Any] = {"bound": bound}
        for name in MEASURES:
            row[name] = round(float(np.mean(measured[name])), 4)
        for name in ("style_score", "right"):
            change = np.array(measured[name]) - np.array(values[0][name])
            means = random.choice(change, (RESAMPLES, len(change))).mean(axis=1)
            row[f"{name}_change_95"] = [round(float(edge), 4) for edge in np.percentile(means, [2.5, 97.5])]
        rows.append(row)
    return rows


def free_bound(rows: list[dict[str, Any]], tolerance: float) -> int:
    """The largest bound up to which the intervals of style and correctness leave no room for a loss of `tolerance`."""
    free = 0
    for row in rows:
        if min(row["style_score_change_95"][0], row["right_change_95"][0]) < -tolerance:
            break
        free = row["bound"]
    return free


def draw(results: dict[str, Any], steps: int, path: Path) -> None:
    """Draws the three measures over k, one panel per LoRA."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True)
    for axes, (name, result) in zip(np.atleast_1d(panels), results.items(), strict=True):
        bounds = [row["bound"] for row in result["rows"]]
        labels = {"style_score": "style score", "right": "everything right", "ssim": "SSIM to the exact picture"}
        for measure_name, label in labels.items():
            axes.plot(bounds, [row[measure_name] for row in result["rows"]], marker="o", markersize=3, label=label)
        axes.axvline(result["free_bound"], color="grey", linestyle="--", linewidth=1, label="costs nothing measurable")
        if result["profile_bound"] is not None:
            axes.axvline(result["profile_bound"], color="tab:red", linestyle=":", linewidth=1, label="profile-lora's k")
        axes.set(title=name, xlabel=f"k of {steps} steps", ylim=(0, 1.05))
    np.atleast_1d(panels)[0].legend(fontsize="x-small", loc="lower left")
    figure.savefig(path, dpi=150)


def main(
    prompts: Annotated[int, typer.Option(min=2)] = 100,
    steps: Annotated[int, typer.Option(min=2)] = 20,
    bounds: Annotated[str, typer.Option(help="Values of k; as many as the steps means: never.")] = "0,2,4,6,8,12,16,20",
    guidance_scale: Annotated[float, typer.Option()] = 2.0,
    tolerance: Annotated[float, typer.Option(help="Loss that counts as measurable.")] = 0.05,
    names: Annotated[list[str] | None, typer.Option("--lora", help="Default: all.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    out: Annotated[Path, typer.Option()] = ROOT / "benchmarks/results/lora_bound.json",
    plot: Annotated[Path, typer.Option()] = ROOT / "docs/lora_bound.webp",
) -> None:
    """Measure what bounded asynchronous loading does to pictures; other LoRAs in OUT keep their results."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    held_out = held_out_prompts(prompts)
    values_of_k = sorted({int(bound) for bound in bounds.split(",")} | {0})
    settings = {"prompts": prompts, "steps": steps, "guidance_scale": guidance_scale, "tolerance": tolerance}
    results = _kept(out, settings)
    with LocalPipeline(Checkpoint(ROOT / "export/demo/weights"), torch.device("cpu"), torch.float32) as pipeline:
        for name in names or list(RECIPES):
            rows = summarise(measure(pipeline, RECIPES[name], held_out, values_of_k, steps, guidance_scale))
            bound = Profiles(LORAS, print).of(name, LORAS / f"{name}.safetensors", None).bound
            results[name] = {"rows": rows, "free_bound": free_bound(rows, tolerance), "profile_bound": bound}
    command = f"python benchmarks/lora_bound.py --prompts {prompts} --steps {steps} --bounds {bounds}"
    written = {"command": command, "machine": describe(), **settings, "loras": results}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(written) + "\n", "utf-8")
    draw(results, steps, plot)
    table = Table("LoRA", "k", "style score", "everything right", "SSIM")
    for name, result in results.items():
        for row in result["rows"]:
            mark = " ←" if row["bound"] == result["free_bound"] else ""
            shown = [f"{row[measure_name]:.3f}" for measure_name in MEASURES]
            table.add_row(name, f"{row['bound']}{mark}", *shown)
        table.add_section()
    Console().print(table)


def _kept(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Earlier results under the same settings."""
    if not out.exists():
        return {}
    before = json.loads(out.read_text("utf-8"))
    return dict(before["loras"]) if settings.items() <= before.items() else {}


def _request(prompt: Prompt, recipe: Recipe, steps: int, guidance_scale: float) -> CompletedRequest:
    text = recipe.prompt(prompt.text)
    return CompletedRequest("run", text, None, prompt.seed, steps, guidance_scale, SIZE, SIZE, None)


if __name__ == "__main__":
    typer.run(main)
