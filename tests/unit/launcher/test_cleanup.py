"""Whose shared memory is whose, and processes that do not go by themselves."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from file_server import wait_for
from swiftdiffusion.python_backends.launcher.directories import (
    RUNTIME_VARIABLE,
    make_private_directory,
    make_runtime_directory,
    remove_stale_directories,
)
from swiftdiffusion.python_backends.launcher.processes import command_line, group_members, kill_group, pid_namespace
from swiftdiffusion.python_backends.launcher.shared_memory import (
    SHARED_MEMORY,
    region_prefix,
    remove_regions,
    remove_stale_regions,
)

SLEEP = "import time; time.sleep(60)"
STUB = "/anywhere/triton_python_backend_stub"
Start = Callable[..., "subprocess.Popen[bytes]"]
NOBODY = 65534
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes that sleep, with any arguments on their command line and any name as the first of them."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str, name: str = sys.executable) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([name, "-c", SLEEP, *arguments], executable=sys.executable)
        started.append(process)
        wait_for(lambda: command_line(process.pid) != "")  # empty while it becomes the new program
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def region() -> Iterator[Callable[[str], Path]]:
    """Makes files in /dev/shm."""
    made: list[Path] = []

    def make(name: str) -> Path:
        made.append(SHARED_MEMORY / name)
        made[-1].write_bytes(b"x")
        return made[-1]

    yield make
    for path in made:
        path.unlink(missing_ok=True)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_regions_of_dead_servers_of_this_pid_namespace_go(region: Callable[[str], Path]) -> None:
    stale = region(f"{region_prefix(dead_pid())}abc")
    reused = region(f"{region_prefix(os.getpid())}abc")  # the pid is another process's by now
    elsewhere = region(f"swiftdiffusion_{pid_namespace() + 1}_{dead_pid()}_abc")
    foreign = region(f"triton_python_backend_shm_region_{dead_pid()}")
    removed = remove_stale_regions()
    assert {stale.name, reused.name} <= set(removed)
    assert not stale.exists()
    assert not reused.exists()
    assert elsewhere.exists()
    assert foreign.exists()


def test_region_of_a_living_server_stays(region: Callable[[str], Path]) -> None:
    script = f'exec "{sys.executable}" -c "{SLEEP}" "{region_prefix("$$")}"'
    server = subprocess.Popen(["/bin/sh", "-c", script])
    try:
        prefix = region_prefix(server.pid)
        wait_for(lambda: prefix in Path(f"/proc/{server.pid}/cmdline").read_text())
        path = region(f"{prefix}abc")
        remove_stale_regions()
        assert path.exists()
        assert remove_regions(prefix) == [path.name]
        assert not path.exists()
    finally:
        server.kill()
        server.wait()


def test_stopped_stub_of_a_dead_server_is_killed(start: Start, region: Callable[[str], Path]) -> None:
    name = f"{region_prefix(dead_pid())}abc"
    region(name)
    stub, other_stub, no_stub = start(name, name=STUB), start("swiftdiffusion_1_1_abc", name=STUB), start(name)
    stub.send_signal(signal.SIGSTOP)
    remove_stale_regions()
    assert stub.wait(10) == -signal.SIGKILL
    assert other_stub.poll() is None
    assert no_stub.poll() is None


@root_only
def test_regions_of_another_user_stay(region: Callable[[str], Path]) -> None:
    prefix = region_prefix(dead_pid())
    foreign = region(f"{prefix}abc")
    os.chown(foreign, NOBODY, NOBODY)
    assert foreign.name not in remove_stale_regions()
    assert remove_regions(prefix) == []
    assert foreign.exists()


def test_what_is_no_region_stays(region: Callable[[str], Path], tmp_path: Path) -> None:
    prefix = region_prefix(dead_pid())
    stale = region(f"{prefix}abc")
    directory, link = SHARED_MEMORY / f"{prefix}directory", SHARED_MEMORY / f"{prefix}link"
    directory.mkdir()
    link.symlink_to(tmp_path)
    try:
        removed = remove_stale_regions()
        assert stale.name in removed
        assert not {directory.name, link.name} & set(removed)
        assert directory.is_dir()
        assert link.is_symlink()
    finally:
        directory.rmdir()
        link.unlink()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def private_directory(temporary: Path, pid: int) -> Path:
    directory = temporary / f"swiftdiffusion_{pid_namespace()}_{pid}_abc"
    (directory / "runtime").mkdir(parents=True)
    return directory


def test_directories_are_for_one_user(temporary: Path) -> None:
    private = make_private_directory()
    runtime = make_runtime_directory(private)
    assert private.parent == temporary
    assert private.stat().st_mode & 0o777 == runtime.stat().st_mode & 0o777 == 0o700
    remove_stale_directories()
    assert runtime.exists()  # its launcher lives


def test_only_directories_that_nobody_uses_go(temporary: Path) -> None:
    stale, used = private_directory(temporary, dead_pid()), private_directory(temporary, dead_pid())
    link = temporary / f"swiftdiffusion_{pid_namespace()}_{dead_pid()}_link"
    link.symlink_to(temporary)
    environment = os.environ | {RUNTIME_VARIABLE: str(used / "runtime")}
    orphan = subprocess.Popen([sys.executable, "-c", SLEEP], env=environment)
    try:
        wait_for(lambda: command_line(orphan.pid).endswith(SLEEP))
        remove_stale_directories()
        assert not stale.exists()
        assert used.exists()
        assert link.is_symlink()
    finally:
        orphan.kill()
        orphan.wait()
    remove_stale_directories()
    assert not used.exists()


@root_only
def test_directories_of_another_user_stay(temporary: Path) -> None:
    foreign = private_directory(temporary, dead_pid())
    os.chown(foreign, NOBODY, NOBODY)
    remove_stale_directories()
    assert foreign.exists()


def test_directory_that_cannot_be_removed_is_no_obstacle(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(f"no: {path}")

    stuck = private_directory(temporary, dead_pid())
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with caplog.at_level(logging.WARNING):
        remove_stale_directories()
    assert f"{stuck} stays" in caplog.text


def test_group_is_killed_with_its_stopped_members() -> None:
    sleep = f'"{sys.executable}" -c "{SLEEP}"'
    leader = subprocess.Popen(["/bin/sh", "-c", f"{sleep} & {sleep} & wait"], start_new_session=True)
    wait_for(lambda: len(group_members(leader.pid)) == 3)
    os.kill(max(group_members(leader.pid)), signal.SIGSTOP)
    kill_group(leader.pid)
    leader.wait()
    assert group_members(leader.pid) == []
    kill_group(leader.pid)  # nobody left: nothing happens
