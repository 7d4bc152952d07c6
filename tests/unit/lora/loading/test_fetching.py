"""Fetching from a real HTTP server that fails in every way."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
import tracemalloc
from pathlib import Path

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from file_server import FileServer, wait_for
from swiftdiffusion.python_backends.lora.loading.fetch_errors import FetchError
from swiftdiffusion.python_backends.lora.loading.fetch_limits import FetchLimits
from swiftdiffusion.python_backends.lora.loading.fetching import Fetcher

CONTENT = bytes(range(256)) * 64
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LIMITS = FetchLimits(max_bytes=2**20, timeout_s=5.0, read_timeout_s=2.0, attempts=3, first_wait_s=0.01)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def failure(location: str, target: Path, limits: FetchLimits = LIMITS, sha256: str | None = None) -> FetchError:
    with pytest.raises(FetchError) as error:
        Fetcher(limits).fetch(location, target, sha256)
    return error.value


def test_a_file_is_fetched_with_one_request(server: FileServer, target: Path) -> None:
    url = server.add("/x.safetensors?token=a%2Fb", CONTENT)
    assert Fetcher(LIMITS).fetch(url, target, SHA256) == SHA256
    assert target.read_bytes() == CONTENT
    assert server.gets == {"/x.safetensors?token=a%2Fb": 1}


def test_redirects_are_followed(server: FileServer, target: Path) -> None:
    server.add("/far", CONTENT)
    assert Fetcher(LIMITS).fetch(server.add("/near", redirect="/far"), target, None) == SHA256


def test_a_file_without_an_announced_length_is_fetched(server: FileServer, target: Path) -> None:
    assert Fetcher(LIMITS).fetch(server.add("/x", CONTENT, announced=-1), target, SHA256) == SHA256


def test_other_stores_are_read_too(target: Path, tmp_path: Path) -> None:
    with fsspec.open("memory://loras/x.safetensors", "wb") as file:
        file.write(CONTENT)
    assert Fetcher(LIMITS).fetch("memory://loras/x.safetensors", target, SHA256) == SHA256
    assert failure("memory://loras/y.safetensors", target).kind == "not_found"
    few = FetchLimits(max_bytes=100)
    assert failure("memory://loras/x.safetensors", target, few).kind == "too_large"
    assert failure("gs-not-installed://loras/x", target).kind in ("protocol", "store")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_passing_trouble_is_tried_again(server: FileServer, target: Path, status: int) -> None:
    kinds: list[str] = []
    url = server.add("/x", CONTENT, failures=[status, status])
    assert Fetcher(LIMITS, kinds.append).fetch(url, target, None) == SHA256
    assert server.gets["/x"] == 3
    assert kinds == ["status", "status"]


def test_lasting_trouble_ends(server: FileServer, target: Path) -> None:
    error = failure(server.add("/x", CONTENT, failures=[500] * 9), target)
    assert str(error).startswith("its store answers 500")
    assert server.gets["/x"] == 3


@pytest.mark.parametrize(("status", "kind"), [(404, "not_found"), (403, "status"), (401, "status"), (410, "status")])
def test_what_will_not_change_is_not_tried_again(server: FileServer, target: Path, status: int, kind: str) -> None:
    assert failure(server.add("/x", CONTENT, failures=[status] * 9), target).kind == kind
    assert server.gets["/x"] == 1


def test_a_cut_off_file_is_fetched_again(server: FileServer, target: Path) -> None:
    url = server.add("/x", CONTENT, cut_after=5000, cuts=1)
    assert Fetcher(LIMITS).fetch(url, target, None) == SHA256
    assert server.gets["/x"] == 2


def test_a_file_that_is_always_cut_off_is_an_error(server: FileServer, target: Path) -> None:
    assert failure(server.add("/x", CONTENT, cut_after=5000), target).kind == "truncated"


def test_an_announced_length_that_is_a_lie(server: FileServer, target: Path) -> None:
    assert failure(server.add("/long", CONTENT, announced=len(CONTENT) + 1), target).kind == "truncated"
    assert failure(server.add("/short", CONTENT, announced=100), target, sha256=SHA256).kind != "truncated"


def test_a_file_that_is_too_large_is_refused_before_and_while_it_comes(server: FileServer, target: Path) -> None:
    limits = FetchLimits(max_bytes=10_000)
    announced = failure(server.add("/announced", CONTENT), target, limits)
    assert (announced.kind, announced.transient) == ("too_large", False)
    assert not target.exists()
    assert failure(server.add("/silent", CONTENT * 40, announced=-1), target, limits).kind == "too_large"
    assert target.stat().st_size <= 10_000 + 2**18
    assert server.gets == {"/announced": 1, "/silent": 1}


def test_a_packed_answer_is_not_unpacked(server: FileServer, target: Path) -> None:
    url = server.add("/x", CONTENT, headers={"Content-Encoding": "gzip"})
    assert Fetcher(LIMITS).fetch(url, target, None) == SHA256


def test_another_hash_is_refused_once(server: FileServer, target: Path) -> None:
    error = failure(server.add("/x", CONTENT), target, sha256="ab" * 32)
    assert str(error) == f"its file hashes to {SHA256}; the catalogue says {'ab' * 32}"
    assert server.gets["/x"] == 1


def test_a_stalling_server_holds_nobody(server: FileServer, target: Path) -> None:
    limits = FetchLimits(max_bytes=2**20, timeout_s=5.0, read_timeout_s=0.3, attempts=2, first_wait_s=0.01)
    start = time.monotonic()
    error = failure(server.add("/x", CONTENT, stall_after=1000), target, limits)
    assert (error.kind, str(error)) == ("timeout", "its store sent nothing for 0.3 s")
    assert 0.5 < time.monotonic() - start < 10
    assert server.gets["/x"] == 2
    assert failure(server.add("/silent", CONTENT, delay_s=60.0), target, limits).kind == "timeout"


def test_a_dripping_server_holds_nobody(server: FileServer, target: Path) -> None:
    limits = FetchLimits(max_bytes=2**20, timeout_s=0.5, read_timeout_s=0.3)
    start = time.monotonic()
    assert failure(server.add("/x", CONTENT, drip_s=0.1), target, limits).kind == "timeout"
    assert time.monotonic() - start < 10
    assert server.gets["/x"] == 1


def test_a_server_that_is_not_there(target: Path, server: FileServer) -> None:
    url = server.url("/x")
    server.close()
    error = failure(url, target)
    assert (error.kind, str(error)) == ("connection", "its store cannot be reached")
    assert failure("http://host.invalid/x", target).kind == "connection"


@pytest.mark.parametrize("url", ["http://[", "http://", "nonsense://x", "http://127.0.0.1:99999/x", "://"])
def test_locations_that_are_none(url: str, target: Path) -> None:
    assert failure(url, target).kind in ("store", "protocol", "connection", "not_found")


@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_no_message_has_the_url(
    server: FileServer, target: Path, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    url = server.add("/secret?token=secret", failures=[status] * 9).replace("http://", "http://user:secret@")
    with caplog.at_level(logging.WARNING):
        assert "secret" not in str(failure(url, target))
    assert "fetching from http://127.0.0.1 failed" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "location", ["nonsense://{}", "http://[{}", "http://127.0.0.1:x{}", "://{}", "chatty://{}", "http://{}\x00"]
)
def test_what_a_store_says_of_the_url_stays_out_of_the_log(
    target: Path, caplog: pytest.LogCaptureFixture, location: str
) -> None:
    fsspec.register_implementation("chatty", ChattyFileSystem, clobber=True)
    with caplog.at_level(logging.WARNING):
        assert "secret" not in str(failure(location.format("user:secret@x.invalid/secret?token=secret"), target))
    assert "failed" in caplog.text
    assert "secret" not in caplog.text


def test_the_log_has_the_place_of_a_failure_nobody_knows(target: Path, caplog: pytest.LogCaptureFixture) -> None:
    fsspec.register_implementation("chatty", ChattyFileSystem, clobber=True)
    assert str(failure("chatty://x", target)) == "its store failed with RuntimeError"
    assert "in info" in caplog.text


def test_what_a_server_says_beside_its_status_is_not_passed_on(server: FileServer, target: Path) -> None:
    assert str(failure(server.add("/x", failures=[403], reason="Forbidden: secret"), target)) == (
        "its store answers 403"
    )


class ChattyFileSystem(AbstractFileSystem):
    """Its errors say which file was asked for."""

    protocol = "chatty"

    def info(self, path: str, **options: object) -> object:
        raise RuntimeError(f"no such thing as {path}")

    def _open(self, path: str, *args: object, **options: object) -> object:
        return self.info(path)


def test_memory_stays_bounded(server: FileServer, target: Path) -> None:
    content = bytes(48 * 2**20)
    url = server.add("/x", content)
    fetcher = Fetcher(FetchLimits(max_bytes=2**30))
    tracemalloc.start()
    try:
        fetcher.fetch(url, target, None)
        assert tracemalloc.get_traced_memory()[1] < 24 * 2**20
    finally:
        tracemalloc.stop()


def test_several_threads_fetch_at_a_time(server: FileServer, tmp_path: Path) -> None:
    fetcher, found = Fetcher(LIMITS), []
    gate = threading.Event()
    urls = [server.add(f"/{index}", CONTENT, gate=gate) for index in range(8)]

    def fetch(index: int) -> None:
        found.append(fetcher.fetch(urls[index], tmp_path / str(index), SHA256))

    threads = [threading.Thread(target=fetch, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(server.gets) == 8)
    gate.set()
    for thread in threads:
        thread.join()
    assert found == [SHA256] * 8
