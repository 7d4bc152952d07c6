"""Requests with LoRAs of a catalogue by Zipf's law: a few are asked for all the time, most now and then."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from .load import INPUTS, read_requests

NamesIn = Callable[[Path], list[str]]
"""The names of a LoRA catalogue, by its directory; raises ValueError where it is none. The command's context has it."""


def lora_mix(
    context: typer.Context,
    loras: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The server's LoRA catalogue.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("out/lora-mix.json"),
    requests: Annotated[int, typer.Option(min=1, help="How many requests to write.")] = 200,
    lora_share: Annotated[float, typer.Option(min=0, max=1, help="Share of them with LoRAs, one or two each.")] = 0.6,
    zipf: Annotated[
        float, typer.Option(min=0, help="The name of rank r is drawn in proportion to r^-ZIPF; 0: all alike.")
    ] = 1.1,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
) -> None:
    """Write requests with LoRAs of a catalogue, for `perf --input-data`.

    With more LoRAs than fit the server's host cache, hot and cold ones mix; while a server is fresh, each name's first
    request is a cold one.
    """
    names_in: NamesIn = context.obj
    try:
        names = names_in(loras)
        entries = draw_requests(names, requests, lora_share, zipf, seed, steps)
    except ValueError as error:
        raise typer.BadParameter(f"{loras}: {error}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
    out.write_text(f'{{"data": [\n{lines}\n]}}\n', encoding="utf-8")
    used = {lora["name"] for entry in entries for lora in json.loads(entry["LORAS"][0])}
    typer.echo(f"{out}: {requests} requests with {len(used)} of {len(names)} LoRAs")


def draw_requests(
    names: Sequence[str], count: int, lora_share: float, exponent: float, seed: int, steps: int
) -> list[Mapping[str, Any]]:
    """Draws requests; which name has which rank is drawn too.

    Args:
        names: of the LoRAs.
        count: of the requests.
        lora_share: share of the requests that have LoRAs: one or two, equally often.
        exponent: of Zipf's law.
        seed: of everything that is drawn.
        steps: denoising steps.

    Returns:
        Entries of perf_analyzer's `data`, each with every input, as it wants: LORAS is `[]` where there is none.

    Raises:
        ValueError: there are no names.
    """
    if not names:
        raise ValueError("there are no LoRAs")
    random = np.random.default_rng(seed)
    ranked = random.permutation(sorted(names))
    weights = np.arange(1, len(ranked) + 1, dtype=np.float64) ** -exponent
    weights /= weights.sum()
    prompts = [entry["PROMPT"] for entry in read_requests(INPUTS["plain"], {})]
    drawn: list[Mapping[str, Any]] = []
    for index in range(count):
        size = min(int(random.integers(1, 3)), len(ranked)) if random.random() < lora_share else 0
        chosen = random.choice(ranked, size=size, replace=False, p=weights)
        loras = json.dumps([{"name": str(name), "scale": 1.0} for name in chosen])
        drawn.append({"PROMPT": prompts[index % len(prompts)], "SEED": [index + 1], "STEPS": [steps], "LORAS": [loras]})
    return drawn
