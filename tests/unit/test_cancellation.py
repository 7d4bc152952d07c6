"""The registry of running and cancelled requests, and the directory that it lies in."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swiftdiffusion.python_backends import cancellation, runtime
from swiftdiffusion.python_backends.cancellation import RequestRegistry
from swiftdiffusion.python_backends.errors import InvalidRequestError


@pytest.fixture
def registry(tmp_path: Path) -> RequestRegistry:
    return RequestRegistry(tmp_path)


def test_a_running_request_is_cancelled_and_forgotten(registry: RequestRegistry, tmp_path: Path) -> None:
    registry.accept("a")
    registry.enter("a")
    assert not registry.is_cancelled("a")
    assert registry.cancel("a")
    assert registry.is_cancelled("a")
    registry.leave("a")
    assert not registry.is_cancelled("a")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_a_waiting_request_is_cancelled_too(registry: RequestRegistry) -> None:
    assert not registry.cancel("a")
    registry.accept("a")
    assert registry.cancel("a")
    registry.enter("a")
    assert registry.is_cancelled("a")


def test_a_flag_from_before_does_not_concern_a_new_request(registry: RequestRegistry) -> None:
    registry.cancel("a")
    registry.accept("a")
    assert not registry.is_cancelled("a")


def test_who_is_told_that_a_new_request_is_cancelled_is_told_the_truth(registry: RequestRegistry) -> None:
    def cancel_until_told(request_id: str) -> None:
        deadline = time.monotonic() + 10
        while not registry.cancel(request_id):
            assert time.monotonic() < deadline

    with ThreadPoolExecutor(1) as threads:
        for request_id in map(str, range(100)):
            told = threads.submit(cancel_until_told, request_id)
            registry.accept(request_id)
            told.result()
            assert registry.is_cancelled(request_id)


def test_another_request_of_the_same_id_does_not_bring_a_cancelled_one_back(registry: RequestRegistry) -> None:
    registry.accept("a")
    registry.enter("a")
    assert registry.cancel("a")
    registry.accept("a")
    assert registry.is_cancelled("a")
    registry.leave("a")
    registry.enter("a")
    assert not registry.is_cancelled("a")


def test_an_id_has_one_owner_until_that_process_dies(registry: RequestRegistry, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from swiftdiffusion.python_backends.cancellation import RequestRegistry;"
        f"RequestRegistry(Path({str(tmp_path)!r})).enter('a'); print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"in\n"
    with pytest.raises(InvalidRequestError, match='REQUEST_ID is "a", which a running request has'):
        registry.enter("a")
    other.kill()
    other.wait()
    registry.enter("a")


def test_flags_without_a_request_do_not_pile_up(registry: RequestRegistry, tmp_path: Path) -> None:
    for index in range(20):
        registry.cancel(f"nobody {index}")
    past = time.time() - cancellation.FORGOTTEN_AFTER_S - 1
    for flag in (tmp_path / "cancelled").iterdir():
        os.utime(flag, (past, past))
    registry.cancel("somebody")
    assert len(list((tmp_path / "cancelled").iterdir())) == 1


@pytest.mark.parametrize("request_id", ["../../x", "a/b", "\u2026", "x" * 256])
def test_any_text_is_an_id(registry: RequestRegistry, tmp_path: Path, request_id: str) -> None:
    registry.enter(request_id)
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == 1


def test_the_directory_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runtime.VARIABLE, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = runtime.runtime_directory()
    assert directory.parent == tmp_path
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o755)
    with pytest.raises(PermissionError, match="not a directory of this user alone"):
        runtime.runtime_directory()
    directory.rmdir()
    directory.symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        runtime.runtime_directory()


def test_the_launcher_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.VARIABLE, str(tmp_path / "mine"))
    assert runtime.runtime_directory() == tmp_path / "mine"


def test_a_refused_request_waits_no_more(tmp_path: Path) -> None:
    registry = RequestRegistry(tmp_path)
    registry.accept("mine")
    registry.refuse("mine")
    assert not registry.cancel("mine")


def test_a_request_whose_id_is_taken_waits_no_more(registry: RequestRegistry) -> None:
    registry.accept("a")
    registry.enter("a")
    registry.accept("a")
    with pytest.raises(InvalidRequestError):
        registry.enter("a")
    registry.leave("a")
    assert not registry.cancel("a")
