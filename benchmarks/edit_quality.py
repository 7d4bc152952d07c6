"""How near mask-aware pictures are to the exact ones, beside what the same time buys with fewer steps.

The demo family: one item of a drawn scene becomes another (`export/demo/edits.py`), Euler, strength 1, guidance 2.
What is known of a picture is what one exact request with the old caption and another seed has left; in the last way
one with the own caption and seed.
"""

from __future__ import annotations

import json
import statistics
import time
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
OWN, TEMPLATE = '{"source": "own", "exact_steps": "%s"}', '{"source": "template", "exact_steps": "%s"}'
NONE = '{"source": "template", "exact_steps": []}'
WAYS: dict[str, dict[str, Any]] = {
    "template, no exact step": {"mask_aware": NONE},
    "template, fast": {"mask_aware": TEMPLATE % "fast"},
    "template, balanced": {"mask_aware": TEMPLATE % "balanced"},
    "own, fast": {"mask_aware": OWN % "fast"},
    "own, balanced": {"mask_aware": OWN % "balanced"},
    "14 steps": {"steps": 14},
    "10 steps": {"steps": 10},
}
OWN_PROMPT = "template of the own prompt, balanced"
WRITTEN_S = 1.0
"""Until what a request leaves is written."""


def main(
    scenes: Annotated[int, typer.Option(min=2, help="Pictures that are edited.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the choice of scenes.")] = 77,
    out: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = OUT,
) -> None:
    """Serve the demo family, edit scenes in every way, compare the pixels inside the masks with the exact ones."""
    machine = describe()
    found: dict[str, list[tuple[float, bool]]] = {way: [] for way in (*WAYS, OWN_PROMPT)}
    exact_right = 0
    with TritonServer(ROOT / "model_repository") as server, Client(server.grpc_url) as client:
        for edit in track(list(islice(scene_edits(seed), scenes)), "scenes"):
            request = _request(edit)
            exact = client.generate(request).pixels
            exact_right += _is_right(exact, edit)
            client.generate(replace(request, steps=2, mask_aware=OWN % "fast"))  # the picture is seen
            client.generate(replace(request, prompt=edit.before, seed=edit.seed + 1))
            time.sleep(WRITTEN_S)
            for way, changes in WAYS.items():
                made = _made(client, replace(request, **changes))
                found[way].append((_decibels(made, exact, edit.mask > 0), _is_right(made, edit)))
            client.generate(request)
            time.sleep(WRITTEN_S)
            made = _made(client, replace(request, mask_aware=TEMPLATE % "balanced"), same_prompt=True)
            found[OWN_PROMPT].append((_decibels(made, exact, edit.mask > 0), _is_right(made, edit)))
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


def _made(client: Client, request: GenerationRequest, same_prompt: bool = False) -> np.ndarray:
    """The picture, made by what it should go by."""
    made = client.generate(request)
    told = made.info.editing
    if "template" in (request.mask_aware or "") and (
        told is None or (told.misses, told.same_prompt) != (0, same_prompt)
    ):
        raise RuntimeError(f"a request went by other entries than it should: {told}")
    return made.pixels


def _decibels(made: np.ndarray, exact: np.ndarray, inside: np.ndarray) -> float:
    """PSNR; 99 of equal pixels."""
    error = float(np.square(made[inside].astype(np.float64) - exact[inside]).mean())
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def _is_right(picture: np.ndarray, edit: SceneEdit) -> bool:
    verdict = check(picture, edit.scene)
    return verdict.colours and verdict.shapes and verdict.positions


if __name__ == "__main__":
    typer.run(main)
