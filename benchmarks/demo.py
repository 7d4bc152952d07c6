"""`make demo`: a real server on the committed repository, pictures with LoRAs and ControlNets, their latencies."""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from demo_controls import COLUMNS as CONTROL_COLUMNS
from demo_controls import ControlledPictures
from demo_edits import COLUMNS as EDIT_COLUMNS
from demo_edits import EditedPictures
from demo_gateway import draw_through_gateway
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swiftdiffusion.clients import Client, GenerationRequest, GenerationResult, Lora
from swiftdiffusion.clients.commands.contact_sheet import contact_sheet
from swiftdiffusion.clients.commands.generate_command import describe_lora
from swiftdiffusion.export.demo.checker import Verdict
from swiftdiffusion.export.demo.drawing import PLAIN_STYLE, Style
from swiftdiffusion.export.demo.lora.checking import check_styled, in_plain_style
from swiftdiffusion.export.demo.lora.recipes import RECIPES
from swiftdiffusion.export.demo.lora.scores import score
from swiftdiffusion.export.demo.prompts import Prompt, held_out_prompts
from swiftdiffusion.python_backends.launcher import TritonServer

ROOT = Path(__file__).resolve().parents[1]
SIDE, STYLED_SIDE, STEERED_SIDE = 256, 168, 128
"""Pixels of a picture in the sheet's parts: rows of four, six and eight are about equally wide."""
FILL, PALETTE = "hatched", "night"
"""The two LoRAs that are used together: one changes how items are filled, the other the colours."""


@dataclass(frozen=True)
class Column:
    """One way to draw the same prompts: with which LoRAs, and in which style the pictures should then be."""

    loras: tuple[str, ...]
    style: Style

    @property
    def name(self) -> str:
        """For people."""
        return " + ".join(self.loras) or "no LoRA"

    def request(self, prompt: Prompt) -> GenerationRequest:
        """The prompt, with the triggers of the LoRAs that have one."""
        text = prompt.text
        for name in self.loras:
            text = RECIPES[name].prompt(text)
        return GenerationRequest(text, seed=prompt.seed, loras=[Lora(name) for name in self.loras], lora_bound=0)

    def scores(self, picture: np.ndarray, prompt: Prompt) -> list[float]:
        """How strongly a picture shows the style of each LoRA, 0..1; of two the palette's is taken of filled items."""
        filled = in_plain_style(picture, RECIPES[FILL].style) if len(self.loras) > 1 else picture
        return [score(filled if name == PALETTE else picture, prompt.scene, name) for name in self.loras]

    def is_right(self, picture: np.ndarray, prompt: Prompt) -> bool:
        """Whether it shows what was asked for, the style taken back."""
        return _is_right(check_styled(picture, prompt.scene, self.style))


COLUMNS = (
    Column((), PLAIN_STYLE),
    *(Column((name,), recipe.style) for name, recipe in RECIPES.items()),
    Column((FILL, PALETTE), replace(RECIPES[FILL].style, colour_matrix=RECIPES[PALETTE].style.colour_matrix)),
)

Pictures = list[GenerationResult]


def main(
    out: Annotated[Path, typer.Option(help="Contact sheet to write.")] = Path("out/demo.png"),
    count: Annotated[int, typer.Option(min=4, help="Pictures in the sheet's first part.")] = 16,
    styled: Annotated[int, typer.Option(min=2, help="Prompts in its second part, with and without LoRAs.")] = 6,
    steered: Annotated[int, typer.Option(min=1, help="Prompts in its third part, with ControlNets.")] = 4,
    edits: Annotated[int, typer.Option(min=1, help="Pictures in its fourth part, of which an item is replaced.")] = 6,
) -> None:
    """Serve the demo family, draw prompts that it was not trained on, print what came out and how long it took."""
    console = Console()
    prompts = held_out_prompts(max(count, styled, steered))
    console.print("starting the server …")
    with TritonServer(ROOT / "model_repository") as server:
        latencies: dict[str, list[float]] = {}
        plain = _draw_plain(server, [COLUMNS[0].request(prompt) for prompt in prompts[:count]], latencies)
        grid = _draw_styled(server, prompts[:styled], latencies)
        controlled = ControlledPictures(server.grpc_url, prompts[:steered], latencies)
        edited = EditedPictures(server.grpc_url, edits, latencies)
        doors = draw_through_gateway(server.grpc_url, plain[:2])
    sheets = [
        contact_sheet(
            [(_resized(picture, SIDE), prompt.text) for picture, prompt in zip(plain, prompts, strict=False)], columns=4
        ),
        contact_sheet(
            [
                (_resized(pictures[row], STYLED_SIDE), f"{column.name}: {prompts[row].text}")
                for row in range(styled)
                for column, pictures in zip(COLUMNS, grid, strict=True)
            ],
            columns=len(COLUMNS),
        ),
        contact_sheet(controlled.cells(STEERED_SIDE), columns=CONTROL_COLUMNS),
        contact_sheet(edited.cells(STYLED_SIDE), columns=EDIT_COLUMNS),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    _stacked(sheets).save(out)

    console.print(_latency_table(latencies))
    console.print(_style_table(grid, prompts[:styled]))
    console.print(controlled.table())
    first = (pictures[0].info.loras for pictures in grid)
    for report in (report for reports in first for report in reports):
        console.print(f"first picture with {describe_lora(report)}", style="dim", highlight=False)
    right = sum(COLUMNS[0].is_right(picture.pixels, prompt) for picture, prompt in zip(plain, prompts, strict=False))
    console.print(f"{right} of {count} pictures without LoRAs show the colours, shapes and positions of their prompt")
    for sentence in (edited.sentence(), *doors):
        console.print(sentence, highlight=False)
    console.print(f"contact sheet: {out}")


def _draw_plain(server: TritonServer, requests: list[GenerationRequest], latencies: dict[str, list[float]]) -> Pictures:
    """One half over each protocol, and a part of it once more at the same time."""
    pictures: Pictures = []
    half = len(requests) // 2
    for name, url, part in (
        ("HTTP", server.http_url, requests[:half]),
        ("gRPC", server.grpc_url, requests[half:]),
    ):
        with Client(url) as client:
            client.generate(part[0])
            done = [client.generate(request) for request in track(part, f"{len(part)} pictures over {name}")]
        pictures += done
        latencies[f"{name}, one at a time"] = [picture.seconds for picture in done]
    with Client(server.grpc_url) as client, ThreadPoolExecutor(4) as threads:
        together = list(threads.map(client.generate, requests[:half]))
    latencies["gRPC, four at a time"] = [picture.seconds for picture in together]
    return pictures


def _draw_styled(server: TritonServer, prompts: list[Prompt], latencies: dict[str, list[float]]) -> list[Pictures]:
    """The prompts in every column, a column after the other: its first request is the one that changes LoRAs."""
    grid: list[Pictures] = []
    with Client(server.grpc_url) as client:
        for column in track(COLUMNS, f"{len(COLUMNS) * len(prompts)} pictures with and without LoRAs"):
            first, *others = pictures = [client.generate(column.request(prompt)) for prompt in prompts]
            seconds = [picture.seconds for picture in others]
            kind = ("no LoRA", "one LoRA, in the UNet", "two LoRAs, in the UNet")[len(column.loras)]
            latencies.setdefault(kind, []).extend(seconds)
            if len(column.loras) == 1:
                latencies.setdefault("one LoRA, seen for the first time", []).append(first.seconds)
            elif column.loras:
                latencies.setdefault("two LoRAs, from the host's memory", []).append(first.seconds)
            grid.append(pictures)
    return grid


def _latency_table(latencies: dict[str, list[float]]) -> Table:
    headings = ("requests", "pictures", "median", "shortest", "longest")
    table = Table(*headings, title="latency of a 128×128 picture, 20 steps, in ms")
    for name, seconds in latencies.items():
        row = (statistics.median(seconds), min(seconds), max(seconds))
        table.add_row(name, str(len(seconds)), *(f"{1000 * value:.0f}" for value in row))
    return table


def _style_table(grid: list[Pictures], prompts: list[Prompt]) -> Table:
    table = Table("LoRAs", "style score", "without", "right", "without", title=f"style and content of {len(prompts)}")
    bare = [picture.pixels for picture in grid[0]]
    bare_right = sum(COLUMNS[0].is_right(pixels, prompt) for pixels, prompt in zip(bare, prompts, strict=True))
    for column, pictures in zip(COLUMNS[1:], grid[1:], strict=True):
        pixels = [picture.pixels for picture in pictures]
        scores = [column.scores(each, prompt) for each, prompt in zip(pixels, prompts, strict=True)]
        without = [column.scores(each, prompt) for each, prompt in zip(bare, prompts, strict=True)]
        right = sum(column.is_right(each, prompt) for each, prompt in zip(pixels, prompts, strict=True))
        table.add_row(column.name, _means(scores), _means(without), str(right), str(bare_right))
    return table


def _means(scores: list[list[float]]) -> str:
    return ", ".join(f"{mean:.2f}" for mean in np.mean(scores, axis=0))


def _is_right(verdict: Verdict) -> bool:
    return verdict.colours and verdict.shapes and verdict.positions


def _resized(picture: GenerationResult, side: int) -> Image.Image:
    return picture.image.resize((side, side), Image.Resampling.LANCZOS)


def _stacked(sheets: list[Image.Image]) -> Image.Image:
    """One above the other."""
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


if __name__ == "__main__":
    typer.run(main)
