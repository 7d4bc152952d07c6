"""What is made in the background of a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from swiftdiffusion.python_backends.backend.background import made_in_background


def test_whoever_needs_it_waits_for_it() -> None:
    found = made_in_background("sum", lambda: 1 + 1)
    assert [found(), found()] == [2, 2]


@pytest.mark.parametrize(
    ("make", "status", "said"),
    [("lambda: 1 / 0", 1, "networks cannot be made"), ("threading.Event().wait", 0, "")],
)
def test_a_process_ends_without_what_cannot_be_made_and_does_not_wait_to_end(make: str, status: int, said: str) -> None:
    code = f"""
import threading, time
from swiftdiffusion.python_backends.backend.background import made_in_background

found = made_in_background("networks", {make})
if {status}:
    found()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
