"""Whether a process lives: one that has ended does not, even while its parent has not taken note of it."""

from __future__ import annotations

import os
import subprocess
import sys

from swiftdiffusion.python_backends.common.processes import is_alive


def test_a_process_lives_until_it_ends() -> None:
    assert is_alive(os.getpid())
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_alive(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert not is_alive(process.pid)
    process.wait()
    assert not is_alive(process.pid)
