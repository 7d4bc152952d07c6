"""Who computes lets those go first that load."""

from __future__ import annotations

import subprocess
import sys


def test_all_threads_of_a_process_step_back_and_those_that_they_start() -> None:
    code = """
import os, threading
from swiftdiffusion.python_backends.common.processors import NICENESS, step_back

held = threading.Event()

def wait():
    inner = threading.Thread(target=lambda: print(os.getpriority(os.PRIO_PROCESS, 0) == NICENESS))
    held.wait()
    inner.start()
    inner.join()
    print(os.getpriority(os.PRIO_PROCESS, 0) == NICENESS)

thread = threading.Thread(target=wait)
thread.start()
step_back()
held.set()
thread.join()
print(os.getpriority(os.PRIO_PROCESS, 0) == NICENESS)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["True"] * 3
