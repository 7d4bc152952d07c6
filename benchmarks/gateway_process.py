"""The command `swiftdiffusion gateway` on a free port."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = Path(sys.executable).parent / "swiftdiffusion"
START_S = 60.0
_RUNNING = re.compile(r"running on (http://[\w.\[\]:]+)")


@contextmanager
def gateway_process(server_url: str) -> Iterator[str]:
    """One in front of a Triton server; gives its URL.

    Args:
        server_url: `grpc://HOST:PORT`.

    Raises:
        RuntimeError: If it does not start.
    """
    with tempfile.TemporaryFile("w+") as log:
        command = [COMMAND, "gateway", "--port", "0", "--server", server_url]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield _url(process, log.fileno())
        finally:
            process.terminate()
            process.wait(START_S)


def _url(process: subprocess.Popen[bytes], log: int) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        told = Path(f"/proc/self/fd/{log}").read_text("utf-8")
        if found := _RUNNING.search(told):
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"the gateway did not start: {Path(f'/proc/self/fd/{log}').read_text('utf-8')}")
