"""`make demo`: a real server on the committed repository, prompts over HTTP and gRPC, a contact sheet, latencies."""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swiftdiffusion.clients import Client, GenerationRequest, GenerationResult
from swiftdiffusion.clients.contact_sheet import contact_sheet
from swiftdiffusion.export.demo.checker import check
from swiftdiffusion.export.demo.prompts import held_out_prompts
from swiftdiffusion.python_backends.server import TritonServer

ROOT = Path(__file__).resolve().parents[1]


def main(
    out: Annotated[Path, typer.Option(help="Contact sheet to write.")] = Path("out/demo.png"),
    count: Annotated[int, typer.Option(min=4, help="Pictures on the sheet.")] = 16,
) -> None:
    """Serve the demo family, draw prompts that it was not trained on, print what came out and how long it took."""
    console = Console()
    prompts = held_out_prompts(count)
    requests = [GenerationRequest(prompt=prompt.text, seed=prompt.seed) for prompt in prompts]
    console.print("starting the server …")
    with TritonServer(ROOT / "model_repository") as server:
        addresses = {"HTTP": server.http_url, "gRPC": server.grpc_url}
        pictures: list[GenerationResult] = []
        latencies: dict[str, list[float]] = {}
        half = len(requests) // 2
        for name, part in (("HTTP", requests[:half]), ("gRPC", requests[half:])):
            with Client(addresses[name]) as client:
                client.generate(part[0])
                done = [client.generate(request) for request in track(part, f"{len(part)} pictures over {name}")]
            pictures += done
            latencies[f"{name}, one at a time"] = [picture.seconds for picture in done]
        with Client(addresses["gRPC"]) as client, ThreadPoolExecutor(4) as threads:
            together = list(threads.map(client.generate, requests[:half]))
        latencies["gRPC, four at a time"] = [picture.seconds for picture in together]
    captioned = [
        (picture.image.resize((256, 256), Image.Resampling.LANCZOS), prompt.text)
        for picture, prompt in zip(pictures, prompts, strict=True)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(captioned).save(out)

    table = Table("requests", "median", "shortest", "longest", title="latency of a 128×128 picture, 20 steps, in ms")
    for name, seconds in latencies.items():
        row = (statistics.median(seconds), min(seconds), max(seconds))
        table.add_row(name, *(f"{1000 * value:.0f}" for value in row))
    console.print(table)
    verdicts = [check(picture.pixels, prompt.scene) for picture, prompt in zip(pictures, prompts, strict=True)]
    right = sum(verdict.colours and verdict.shapes and verdict.positions for verdict in verdicts)
    console.print(f"{right} of {count} pictures show the colours, shapes and positions of their prompt")
    console.print(f"contact sheet: {out}")


if __name__ == "__main__":
    typer.run(main)
