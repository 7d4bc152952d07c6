"""Whether a process lives: one that has ended does not, even while its parent takes no note of it; what it inherits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from file_server import wait_for
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


def test_a_process_lives_while_one_of_its_threads_does() -> None:
    code = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.readline).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    stat = Path(f"/proc/{process.pid}/stat")
    wait_for(lambda: ") Z " in stat.read_text())
    assert is_alive(process.pid) and process.poll() is None
    process.communicate(b"\n", timeout=30)
    assert not is_alive(process.pid)


def test_a_connection_that_a_process_inherited_ends_when_its_parent_closes_it() -> None:
    code = """
from swiftdiffusion.python_backends.common.processes import close_inherited_connections
close_inherited_connections()
print("closed", flush=True)
input()
"""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as client,
    ):
        accepted, _ = listening.accept()
        near, far = socket.socketpair()
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(accepted.fileno(), far.fileno()),
        )
        assert process.stdout is not None and process.stdout.readline() == b"closed\n"
        for each in (accepted, far):
            each.close()
        client.settimeout(5)
        assert client.recv(1) == b""
        near.setblocking(False)
        with near, pytest.raises(BlockingIOError):
            near.recv(1)  # other sockets stay
        process.communicate(b"\n")
