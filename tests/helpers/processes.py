"""Processes that do something and then wait, for tests of what several do to one file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def other_process(code: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs `code`, has said that it did, and waits."""
    script = f"import sys\nfrom pathlib import Path\n{code}\nprint('in', flush=True)\nsys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"in\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.stdout.close()
