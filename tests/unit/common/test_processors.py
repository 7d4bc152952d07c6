"""Who computes lets those go first that load."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("before", "after"), [(0, 5), (10, 15), (17, 19)])
def test_all_threads_of_a_process_step_back_and_those_that_they_start(before: int, after: int) -> None:
    code = f"""
import os, threading
from swiftdiffusion.python_backends.common.processors import step_back

os.setpriority(os.PRIO_PROCESS, 0, {before})
held = threading.Event()

def tell():
    print(os.getpriority(os.PRIO_PROCESS, 0))

def wait():
    inner = threading.Thread(target=tell)
    held.wait()
    inner.start()
    inner.join()
    tell()

thread = threading.Thread(target=wait)
thread.start()
step_back()
held.set()
thread.join()
tell()
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(after)] * 3
