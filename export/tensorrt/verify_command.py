"""`swiftdiffusion verify-engines`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .verification import Comparison


def verify_engines(
    engines: Annotated[
        list[Path],
        typer.Option(
            exists=True,
            file_okay=False,
            help="Directory of engines; repeat it for others, without plugins, of another runtime or of other norms.",
        ),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Whose UNet is compared with; else ONNX Runtime. LoRAs need it.")
    ] = None,
    loras: Annotated[
        list[Path] | None, typer.Option(help="LoRA files; patched in one after the other, and the first again.")
    ] = None,
    device: Annotated[int, typer.Option(min=0, help="Number of the GPU.")] = 0,
) -> None:
    """Compare engines with what they were built from, before, with and after LoRAs, and time them."""
    from rich.progress import Progress

    from ...python_backends.common.errors import InvalidRequestError
    from ...python_backends.common.library_messages import silence_libraries
    from ...python_backends.networks.checkpoint import CheckpointError
    from ...python_backends.tensorrt.flavours import TensorRTUnavailableError, require_gpu
    from ...python_backends.tensorrt.metadata import EngineMismatchError
    from .graph import GraphError
    from .loaded_engines import LoadedEngines

    if loras and checkpoint is None:
        raise typer.BadParameter("--loras needs --checkpoint, which the LoRAs are for")
    try:
        require_gpu(device)
        silence_libraries()
        loaded = LoadedEngines(engines, checkpoint, device)
        with Progress(transient=True) as progress:
            task = progress.add_task("comparing", total=None)
            results = loaded.verify(loras or [], lambda: progress.advance(task))
    except (
        CheckpointError,
        EngineMismatchError,
        GraphError,
        InvalidRequestError,
        TensorRTUnavailableError,
    ) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from None
    show(results)
    if not all(result.passed for result in results):
        raise typer.Exit(1)


def show(results: Sequence[Comparison]) -> None:
    """Prints a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("engine", "variant", "rows", "LoRAs", "error", "allowed", "ms", "")
    for result in results:
        table.add_row(
            result.engine,
            result.variant,
            str(result.rows),
            result.state,
            f"{result.error:.2e}",
            f"{result.tolerance:.0e}" if result.tolerance else "no bit",
            "" if result.milliseconds is None else f"{result.milliseconds:.2f}",
            "[green]ok[/]" if result.passed else "[red]beyond[/]",
        )
    Console().print(table)
