"""Runs `test_interpreted.py` in a process whose `triton` interprets kernels: that is chosen at its import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs the Triton language: pip install 'swiftdiffusion[kernels]'")


@pytest.mark.xdist_group("tests/unit/kernels/test_compile.py")  # small groups come last, and this takes long
def test_kernels_in_the_interpreter() -> None:
    tests = Path(__file__).with_name("test_interpreted.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", str(tests)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stdout + run.stderr
