"""`swiftdiffusion doctor`: what is missing before `serve` can work."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

_STYLES = {"ok": "green", "warning": "yellow", "missing": "bold red"}
_DEFAULT_REPOSITORY = Path("model_repository")


def doctor(
    repository: Annotated[
        Path | None,
        typer.Option("--repository", "-r", help="Also look for its weights. Default: ./model_repository, if there."),
    ] = None,
) -> None:
    """Check this machine; exit status 1 if something that is needed is missing."""
    from .doctor import Status, run_checks

    if repository is None and _DEFAULT_REPOSITORY.is_dir():
        repository = _DEFAULT_REPOSITORY
    console = Console()
    table = Table("", "check", "found", "what to do", box=None, pad_edge=False)
    with console.status("checking"):
        checks = list(run_checks(repository))
    for check in checks:
        status = Text(check.status.value, style=_STYLES[check.status.value])
        table.add_row(status, Text(check.subject), Text(check.found), Text(check.advice))
    console.print(table)
    if any(check.status is Status.MISSING for check in checks):
        raise typer.Exit(1)
