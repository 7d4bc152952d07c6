"""Stores whose clients know no timeouts: a fetch that hangs in one is left behind."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from file_server import wait_for
from swiftdiffusion.python_backends.lora.loading.fetch_errors import FetchError
from swiftdiffusion.python_backends.lora.loading.fetch_limits import FetchLimits
from swiftdiffusion.python_backends.lora.loading.fetching import Fetcher

CONTENT = bytes(range(256)) * 64
LIMITS = FetchLimits(max_bytes=2**20, timeout_s=0.3, attempts=3, first_wait_s=0.01)
PATIENT = replace(LIMITS, timeout_s=10.0)
"""Of fetches that do not hang."""


class HangingFileSystem(AbstractFileSystem):
    """Files of CONTENT that hang, by the location, when the store is opened, at the first byte or in the middle."""

    protocol = "hanging"
    go_on = threading.Event()
    reads = 0

    @classmethod
    def _get_kwargs_from_urls(cls, path: str) -> dict[str, object]:
        if "connect" in path:
            cls.go_on.wait(60)
        return {}

    def _open(self, path: str, *args: object, **options: object) -> HangingFile:
        return HangingFile(path)


class HangingFile(io.BytesIO):
    def __init__(self, path: str) -> None:
        super().__init__(b"" if "endless" in path else CONTENT)
        self.path = path

    def read(self, size: int | None = -1) -> bytes:
        HangingFileSystem.reads += 1
        if "endless" in self.path:
            return bytes(min(size or 0, 2**16))
        if "read" in self.path or ("middle" in self.path and self.tell()):
            HangingFileSystem.go_on.wait(60)
        return super().read(1000 if "middle" in self.path else size)


@pytest.fixture(autouse=True)
def stores() -> Iterator[None]:
    fsspec.register_implementation("hanging", HangingFileSystem, clobber=True)
    HangingFileSystem.go_on, HangingFileSystem.reads = threading.Event(), 0
    yield
    HangingFileSystem.go_on.set()
    wait_for(lambda: not abandoned())


def abandoned() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lora-fetch"]


def failure(fetcher: Fetcher, location: str, target: Path) -> FetchError:
    with pytest.raises(FetchError) as error:
        fetcher.fetch(location, target, None)
    return error.value


@pytest.mark.parametrize("where", ["connect", "read", "middle"])
def test_a_store_that_hangs_holds_nobody(tmp_path: Path, where: str) -> None:
    target = tmp_path / "target"
    start = time.monotonic()
    error = failure(Fetcher(LIMITS), f"hanging://{where}", target)
    assert (error.kind, str(error)) == ("timeout", "its store did not send the file within 0.3 s")
    assert time.monotonic() - start < 10
    target.unlink()
    HangingFileSystem.go_on.set()
    wait_for(lambda: not abandoned())
    assert not target.exists()


def test_while_a_fetch_hangs_no_second_one_starts_for_its_file(tmp_path: Path) -> None:
    fetcher = Fetcher(LIMITS)
    failure(fetcher, "hanging://read", tmp_path / "target")
    error = failure(fetcher, "hanging://read", tmp_path / "target")
    assert (error.kind, str(error)) == ("timeout", "its store still holds up an earlier fetch of the file")
    assert len(abandoned()) == HangingFileSystem.reads == 1
    fetcher._limits = PATIENT
    assert fetcher.fetch("hanging://good", tmp_path / "good", None) == hashlib.sha256(CONTENT).hexdigest()
    HangingFileSystem.go_on.set()
    wait_for(lambda: not abandoned())
    assert fetcher.fetch("hanging://read", tmp_path / "target", None) == hashlib.sha256(CONTENT).hexdigest()
    assert (tmp_path / "target").read_bytes() == CONTENT


def test_only_so_many_fetches_hang(tmp_path: Path) -> None:
    fetcher = Fetcher(FetchLimits(max_bytes=2**20, timeout_s=0.2), most_hanging=3)
    for index in range(3):
        failure(fetcher, f"hanging://read/{index}", tmp_path / "target")
    assert str(failure(fetcher, "hanging://read/3", tmp_path / "target")) == (
        "3 fetches hang in stores that do not answer, which is the limit"
    )
    assert len(abandoned()) == 3
    HangingFileSystem.go_on.set()
    wait_for(lambda: not abandoned())
    fetcher._limits = PATIENT
    assert fetcher.fetch("hanging://read/3", tmp_path / "target", None)


def test_a_file_without_end_or_size_is_bounded(tmp_path: Path) -> None:
    error = failure(Fetcher(PATIENT), "hanging://endless", tmp_path / "target")
    assert error.kind == "too_large"
    assert (tmp_path / "target").stat().st_size <= LIMITS.max_bytes


def test_what_the_store_raises_is_raised(tmp_path: Path) -> None:
    error = failure(Fetcher(PATIENT), "memory://nowhere", tmp_path / "target")
    assert (error.kind, str(error)) == ("not_found", "its store does not have the file")
