"""The registry of running and cancelled requests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.request import cancellation
from swiftdiffusion.python_backends.request.cancellation import RequestRegistry


@pytest.fixture
def registry(tmp_path: Path) -> RequestRegistry:
    return RequestRegistry(tmp_path)


def test_a_running_request_is_cancelled_and_forgotten(registry: RequestRegistry, tmp_path: Path) -> None:
    registry.accept("a", "run")
    registry.enter("a", "run")
    assert not registry.is_cancelled("a", "run")
    assert registry.cancel("a")
    assert registry.is_cancelled("a", "run")
    assert registry.leave("a", "run")
    assert not registry.cancel("a")
    assert files(tmp_path) == []


def files(directory: Path) -> list[Path]:
    return [file for file in directory.rglob("*") if file.is_file()]


def test_one_that_is_not_cancelled_leaves_so(registry: RequestRegistry, tmp_path: Path) -> None:
    registry.accept("a", "run")
    registry.enter("a", "run")
    assert not registry.leave("a", "run")
    assert files(tmp_path) == []


def test_a_waiting_request_is_cancelled_too(registry: RequestRegistry) -> None:
    assert not registry.cancel("a")
    registry.accept("a", "run")
    assert registry.cancel("a")
    assert not registry.cancel("a"), "it counts as gone"
    registry.enter("a", "run")
    assert registry.is_cancelled("a", "run")


def test_cancelling_does_not_concern_a_later_request(registry: RequestRegistry) -> None:
    registry.cancel("a")
    registry.accept("a", "run")
    assert not registry.is_cancelled("a", "run")


def test_who_is_told_that_a_new_request_is_cancelled_is_told_the_truth(registry: RequestRegistry) -> None:
    def cancel_until_told(request_id: str) -> None:
        deadline = time.monotonic() + 10
        while not registry.cancel(request_id):
            assert time.monotonic() < deadline

    with ThreadPoolExecutor(1) as threads:
        for request_id in map(str, range(100)):
            told = threads.submit(cancel_until_told, request_id)
            registry.accept(request_id, "run")
            told.result()
            assert registry.is_cancelled(request_id, "run")


@pytest.mark.parametrize("runs", [False, True])
def test_a_retry_with_the_same_id_neither_saves_nor_suffers(registry: RequestRegistry, runs: bool) -> None:
    registry.accept("a", "first")
    if runs:
        registry.enter("a", "first")
    assert registry.cancel("a")
    registry.accept("a", "retry")
    assert registry.is_cancelled("a", "first")
    assert not registry.is_cancelled("a", "retry")
    if not runs:
        registry.enter("a", "first")
    assert registry.leave("a", "first")
    registry.enter("a", "retry")
    assert not registry.leave("a", "retry")


def test_all_that_wait_with_an_id_are_cancelled(registry: RequestRegistry) -> None:
    for run in ("one", "two"):
        registry.accept("a", run)
    registry.leave("a", "one")
    assert registry.cancel("a")
    assert [registry.is_cancelled("a", run) for run in ("one", "two")] == [False, True]


def test_an_id_has_one_owner_until_that_process_dies(registry: RequestRegistry, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from swiftdiffusion.python_backends.request.cancellation import RequestRegistry\n"
        f"RequestRegistry(Path({str(tmp_path)!r})).enter('a', 'b'); print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"in\n"
    with pytest.raises(InvalidRequestError, match='REQUEST_ID is "a", which a running request has'):
        registry.enter("a", "c")
    other.kill()
    other.wait()
    assert not registry.cancel("a")
    registry.enter("a", "c")
    registry.accept("b", "d")
    assert len(files(tmp_path)) == 2, "what the dead process left is removed"


def test_what_no_denoiser_came_to_does_not_pile_up(registry: RequestRegistry, tmp_path: Path) -> None:
    for index in range(20):
        registry.accept(f"nobody {index}", "run")
        if index % 2:
            registry.cancel(f"nobody {index}")
    past = time.time() - cancellation.FORGOTTEN_AFTER_S - 1
    for file in files(tmp_path):
        os.utime(file, (past, past))
    registry.accept("somebody", "run")
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("text", ["../../x", "a/b", "\u2026", "x" * 256, "*"])
def test_any_text_is_an_id(registry: RequestRegistry, tmp_path: Path, text: str) -> None:
    registry.accept("another", "run")
    registry.enter(text, text)
    assert len(files(tmp_path)) == 2
    assert registry.cancel(text)
    assert not registry.is_cancelled("another", "run")
