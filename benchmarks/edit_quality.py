"""How near mask-aware pictures are to the exact ones, beside what the same time buys with fewer steps.

The demo family: one item of a drawn scene becomes another (`export/demo/edits.py`), Euler, strength 1, guidance 2.
What is known of a picture is what one exact request with the old caption and another seed has left; in the last way
one with the own caption and seed. Beside them what is not served: keys and values of the first one kept instead of what
blocks give, and the part around the mask as a picture of its own.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from edit_baselines import KvPipeline, draw_cut_out
from edit_grid import write_grid
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
    "template, fast": {"mask_aware": "fast"},
    "template, balanced": {"mask_aware": "balanced"},
    "own, fast": {"mask_aware": OWN % "fast"},
    "own, balanced": {"mask_aware": OWN % "balanced"},
    "14 steps": {"steps": 14},
    "10 steps": {"steps": 10},
}
OWN_PROMPT = "template of the own prompt, balanced"
UNRELATED, TOO_FAR = "a blue ring on a black background", "fast, of an unrelated prompt's template"
EXACT_TOO_FAR = "exact, beside that"
EXACT, KV, CUT_OUT = "exact", "K/V of the template, no exact step", "cut out, exact"
WRITTEN_S = 1.5
"""Until what a request leaves is written."""
SAME = 1.0
"""Mean difference of pictures, of 255, up to which they are the same one."""
SHOWN = 4
"""Scenes of the picture."""


def main(
    scenes: Annotated[int, typer.Option(min=SHOWN, help="Pictures that are edited.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the choice of scenes.")] = 77,
    out: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = OUT,
    pictures: Annotated[Path | None, typer.Option(help="Where the first scenes' pictures go.")] = None,
) -> None:
    """Serve the demo family, edit scenes in every way, compare the pixels inside the masks with the exact ones."""
    machine, kv = describe(), KvPipeline(ROOT / "export/demo/weights")
    edits = list(islice(scene_edits(seed), scenes))
    with TritonServer(ROOT / "model_repository") as server, Client(server.grpc_url) as client:
        drawn = [_drawn(client, kv, edit) for edit in track(edits, "scenes")]
    if pictures is not None:
        write_grid(pictures, edits[:SHOWN], drawn[:SHOWN])
    exact_right = sum(_is_right(each[EXACT], edit) for each, edit in zip(drawn, edits, strict=True))
    ways = {way: _figures(way, drawn, edits) for way in drawn[0] if way not in (EXACT, EXACT_TOO_FAR)}
    command = f"python benchmarks/edit_quality.py --scenes {scenes} --seed {seed}"
    result = {"command": command, "machine": machine, "scenes": scenes, "exact_right": exact_right, "ways": ways}
    out.write_text(json.dumps(result) + "\n", "utf-8")
    table = Table("", "dB inside the mask", "deviation", "lowest", "right", title=f"{scenes} scenes, {STEPS} steps")
    table.add_row(EXACT, "", "", "", str(exact_right))
    for way, each in ways.items():
        table.add_row(
            way, *(f"{each[f'psnr_{what}']:.1f}" for what in ("mean", "deviation", "lowest")), str(each["right"])
        )
    Console().print(table)


def _drawn(client: Client, kv: KvPipeline, edit: SceneEdit) -> dict[str, np.ndarray]:
    """An edit in every way, uint8 [SIZE, SIZE, 3] each."""
    request = _request(edit)
    template = replace(request, prompt=edit.before, seed=edit.seed + 1)
    drawn = {EXACT: client.generate(request).pixels}
    apart = float(np.abs(kv.draw(request).astype(np.float64) - drawn[EXACT]).mean())
    if apart > SAME:
        raise RuntimeError(f"diffusers' exact picture is {apart:.2f} of 255 from the served one")
    drawn[KV] = kv.draw_masked(request, template)
    client.generate(replace(request, steps=2, mask_aware=OWN % "fast"))  # the picture is seen
    client.generate(template)
    time.sleep(WRITTEN_S)
    drawn |= {way: _made(client, replace(request, **changes), way) for way, changes in WAYS.items()}
    drawn[CUT_OUT] = draw_cut_out(client, request)
    drawn |= _too_far(client, request, edit.picture)
    client.generate(request)
    time.sleep(WRITTEN_S)
    own_prompt = replace(request, mask_aware="balanced")
    return drawn | {OWN_PROMPT: _made(client, own_prompt, OWN_PROMPT, same_prompt=True)}


def _too_far(client: Client, request: GenerationRequest, picture: np.ndarray) -> dict[str, np.ndarray]:
    """The same of a picture that looks alike, of which a request with an unrelated prompt has left all there is."""
    request = replace(request, init_image=picture ^ 1)
    exact = client.generate(request).pixels
    client.generate(replace(request, steps=2, mask_aware=OWN % "fast"))
    client.generate(replace(request, prompt=UNRELATED, seed=(request.seed or 0) + 1))
    time.sleep(WRITTEN_S)
    return {EXACT_TOO_FAR: exact, TOO_FAR: client.generate(replace(request, mask_aware="fast")).pixels}


def _figures(way: str, drawn: Sequence[Mapping[str, np.ndarray]], edits: Sequence[SceneEdit]) -> dict[str, float]:
    pairs = list(zip(drawn, edits, strict=True))
    exact = EXACT_TOO_FAR if way == TOO_FAR else EXACT
    decibels = [_decibels(each[way], each[exact], edit.mask > 0) for each, edit in pairs]
    return {
        "psnr_mean": round(statistics.mean(decibels), 2),
        "psnr_deviation": round(statistics.stdev(decibels), 2),
        "psnr_lowest": round(min(decibels), 2),
        "right": sum(_is_right(each[way], edit) for each, edit in pairs),
    }


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


def _made(client: Client, request: GenerationRequest, way: str, same_prompt: bool = False) -> np.ndarray:
    """The picture, made by what it should go by."""
    made = client.generate(request)
    told = made.info.editing
    if "template" in way and (
        told is None or (told.source, told.misses, told.same_prompt) != ("template", 0, same_prompt)
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
