"""How near mask-aware pictures are to the exact ones, beside what the same time buys with fewer steps.

The demo family: one item of a drawn scene becomes another (`export/demo/edits.py`), Euler, strength 1, guidance 2.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from machine import describe
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swiftdiffusion.clients import Client, GenerationRequest
from swiftdiffusion.export.demo.checker import check
from swiftdiffusion.export.demo.edits import SceneEdit, scene_edits
from swiftdiffusion.python_backends.launcher import TritonServer

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks/results/edit_quality.json"
STEPS = 20
WAYS: dict[str, dict[str, Any]] = {
    "fast": {"mask_aware": "fast"},
    "balanced": {"mask_aware": "balanced"},
    "14 steps": {"steps": 14},
    "10 steps": {"steps": 10},
}


def main(
    scenes: Annotated[int, typer.Option(min=2, help="Pictures that are edited.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the choice of scenes.")] = 77,
    out: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = OUT,
) -> None:
    """Serve the demo family, edit scenes in every way, compare the pixels inside the masks with the exact ones."""
    machine = describe()
    found: dict[str, list[tuple[float, bool]]] = {way: [] for way in WAYS}
    exact_right = 0
    with TritonServer(ROOT / "model_repository") as server, Client(server.grpc_url) as client:
        for edit in track(list(islice(scene_edits(seed), scenes)), "scenes"):
            request = _request(edit)
            exact = client.generate(request).pixels
            exact_right += _is_right(exact, edit)
            for way, changes in WAYS.items():
                made = client.generate(replace(request, **changes)).pixels
                found[way].append((_decibels(made, exact, edit.mask > 0), _is_right(made, edit)))
    ways = {
        way: {
            "psnr_mean": round(statistics.mean(decibels for decibels, _ in each), 2),
            "psnr_deviation": round(statistics.stdev(decibels for decibels, _ in each), 2),
            "psnr_lowest": round(min(decibels for decibels, _ in each), 2),
            "right": sum(right for _, right in each),
        }
        for way, each in found.items()
    }
    command = f"python benchmarks/edit_quality.py --scenes {scenes} --seed {seed}"
    result = {"command": command, "machine": machine, "scenes": scenes, "exact_right": exact_right, "ways": ways}
    out.write_text(json.dumps(result) + "\n", "utf-8")
    table = Table("", "dB inside the mask", "deviation", "lowest", "right", title=f"{scenes} scenes, {STEPS} steps")
    table.add_row("exact", "", "", "", str(exact_right))
    for way, each in ways.items():
        table.add_row(
            way, *(f"{each[f'psnr_{what}']:.1f}" for what in ("mean", "deviation", "lowest")), str(each["right"])
        )
    Console().print(table)


def _request(edit: SceneEdit) -> GenerationRequest:
    return GenerationRequest(
        edit.after,
        seed=edit.seed,
        steps=STEPS,
        scheduler="euler",
        guidance_scale=2.0,
        strength=1.0,
        init_image=edit.picture,
        mask_image=edit.mask,
    )


def _decibels(made: np.ndarray, exact: np.ndarray, inside: np.ndarray) -> float:
    """PSNR; 99 of equal pixels."""
    error = float(np.square(made[inside].astype(np.float64) - exact[inside]).mean())
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def _is_right(picture: np.ndarray, edit: SceneEdit) -> bool:
    verdict = check(picture, edit.scene)
    return verdict.colours and verdict.shapes and verdict.positions


if __name__ == "__main__":
    typer.run(main)
