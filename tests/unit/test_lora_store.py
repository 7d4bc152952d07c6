"""The store over its tiers: sources, single flight, refusals, failures; and the disk cache below it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from file_server import FileServer, file_server
from swiftdiffusion.python_backends.errors import (
    InvalidRequestError,
    LoraUnavailableError,
    RequestError,
    UnexpectedError,
)
from swiftdiffusion.python_backends.lora import disk_cache as disk_cache_module
from swiftdiffusion.python_backends.lora.catalogue import Catalogue
from swiftdiffusion.python_backends.lora.disk_cache import DiskCache, HeldFile
from swiftdiffusion.python_backends.lora.fetching import FailureMemory, Fetcher, FetchLimits
from swiftdiffusion.python_backends.lora.host_cache import HostCache
from swiftdiffusion.python_backends.lora.store import LoraStore, StoreObserver
from swiftdiffusion.python_backends.lora.tickets import LoadedLora

GOOD, OTHER = b"good" * 100, b"other" * 100


class Canonicaliser:
    """Copies a file behind a mark, as the real one rewrites it; refuses a content that says it is bad."""

    def __init__(self) -> None:
        self.calls = 0
        self.before: Callable[[Path], None] = lambda _source: None

    def __call__(self, source: Path, target: Path) -> None:
        self.calls += 1
        self.before(source)
        content = source.read_bytes()
        target.write_bytes(b"canonical " + content)
        if content.startswith(b"bad"):
            raise InvalidRequestError("it adapts no module")
        if content.startswith(b"bug"):
            raise RuntimeError("a bug")


class Observer(StoreObserver):
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def loaded(self, source: str, seconds: float) -> None:
        assert seconds >= 0
        self.counts[source] += 1

    def refused(self, reason: str) -> None:
        self.counts[reason] += 1


class Setup:
    """A store in a temporary directory, its parts, and a clock for its memory of failures."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loras = directory / "loras"
        self.loras.mkdir(exist_ok=True)
        self.now = 0.0
        self.index: dict[str, object] = {}
        self.canonicaliser, self.observer = Canonicaliser(), Observer()
        self.catalogue = Catalogue(self.loras)
        self.restart()

    def restart(self, host_bytes: int = 10_000, max_file_bytes: int = 5_000, disk_bytes: int = 10_000) -> None:
        """A new process over the same disk cache; the host cache is gone."""
        self.disk = DiskCache(self.directory / "disk", disk_bytes)
        self.host = HostCache(Path(tempfile.mkdtemp(dir=self.directory)), host_bytes, wait_s=0.05)
        limits = FetchLimits(max_bytes=max_file_bytes, timeout_s=3.0, read_timeout_s=1.0, attempts=2, first_wait_s=0.01)
        self.store = LoraStore(
            self.disk,
            self.host,
            Fetcher(limits),
            self.canonicaliser,
            max_file_bytes=max_file_bytes,
            failures=FailureMemory(2.0, 60.0, clock=lambda: self.now),
            observer=self.observer,
        )

    def file(self, name: str, content: bytes) -> Path:
        path = self.loras / f"{name}.safetensors"
        path.write_bytes(content)
        return path

    def remote(self, name: str, location: str, **more: object) -> None:
        self.index[name] = {"location": location, **more}
        (self.loras / "catalogue.json").write_text(json.dumps({"loras": self.index}))

    def start(self, name: str) -> Future[LoadedLora]:
        return self.store.load(self.catalogue.entry(name))

    def load(self, name: str) -> LoadedLora:
        return self.start(name).result(10)

    def error(self, name: str) -> RequestError:
        with pytest.raises(RequestError) as error:
            self.load(name)
        assert str(error.value).startswith(f'LORAS names "{name}": ')
        return error.value

    def files(self) -> list[Path]:
        """What lies in either cache, but locks and indices."""
        folders = (self.host.directory, self.disk.directory / "content", self.disk.directory / "partial")
        return [path for folder in folders for path in folder.iterdir() if path.suffix != ".lock"]


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    made = Setup(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with file_server() as running:
        yield running


def test_a_local_lora_comes_from_disk_and_then_from_the_host_cache(setup: Setup) -> None:
    setup.file("papercut", GOOD)
    first = setup.load("papercut")
    assert first.source == "disk"
    assert first.load_ms > 0
    assert first.path == setup.host.directory / f"{hashlib.sha256(GOOD).hexdigest()}.safetensors"
    assert first.path.read_bytes() == b"canonical " + GOOD
    again = setup.start("papercut")
    assert again.done()
    assert again.result().source == "host"
    assert setup.canonicaliser.calls == 1
    assert setup.disk.bytes_used() == 0
    assert setup.observer.counts == {"disk": 1, "host": 1}


def test_a_remote_lora_comes_from_its_store_once(setup: Setup, server: FileServer) -> None:
    setup.remote("papercut", server.add("/x", GOOD))
    assert setup.load("papercut").source == "remote"
    assert setup.load("papercut").source == "host"
    setup.restart()
    loaded = setup.load("papercut")
    assert loaded.source == "disk"
    assert loaded.path.read_bytes() == b"canonical " + GOOD
    assert server.gets == {"/x": 1}


def test_names_with_one_content_share_a_file(setup: Setup, server: FileServer) -> None:
    setup.file("a", GOOD)
    setup.file("b", GOOD)
    setup.remote("c", server.add("/x", GOOD))
    assert len({setup.load(name).path for name in "abc"}) == 1
    assert setup.canonicaliser.calls == 1


def test_a_known_hash_needs_no_fetch_where_the_content_is_there(setup: Setup, server: FileServer) -> None:
    setup.remote("a", server.add("/x", GOOD))
    setup.load("a")
    setup.restart()
    setup.remote("b", server.url("/gone"), sha256=hashlib.sha256(GOOD).hexdigest())
    assert setup.load("b").source == "disk"
    assert server.gets == {"/x": 1}


def test_however_many_ask_one_fetches(setup: Setup, server: FileServer) -> None:
    setup.remote("papercut", server.add("/x", GOOD, delay_s=0.2))
    setup.remote("alias", server.url("/x"))
    futures: list[Future[LoadedLora]] = []
    threads = [
        threading.Thread(target=lambda name=name: futures.append(setup.start(name)))
        for name in ["papercut", "alias"] * 10
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({future.result(10).path for future in futures}) == 1
    assert server.gets == {"/x": 1}
    assert setup.canonicaliser.calls == 1
    assert setup.observer.counts == {"remote": 20}


def test_who_joins_a_load_that_fails_reads_their_own_name(setup: Setup, server: FileServer) -> None:
    setup.remote("a", server.add("/x", failures=[404], delay_s=0.2))
    setup.remote("b", server.url("/x"))
    futures = {name: setup.start(name) for name in "ab"}
    for name, future in futures.items():
        with pytest.raises(LoraUnavailableError, match=f'^LORAS names "{name}": its store does not have the file$'):
            future.result(10)
    assert server.gets == {"/x": 1}


def test_asking_never_waits(setup: Setup, server: FileServer) -> None:
    for index in range(20):
        setup.remote(f"slow{index}", server.add(f"/{index}", GOOD, delay_s=0.5))
    start = time.monotonic()
    futures = [setup.start(f"slow{index}") for index in range(20)]
    assert time.monotonic() - start < 0.3
    assert not any(future.done() for future in futures)


def test_a_dead_store_does_not_stall_every_request(setup: Setup, server: FileServer) -> None:
    url = server.add("/x", GOOD, failures=[503] * 4)
    setup.remote("papercut", url)
    assert isinstance(setup.error("papercut"), LoraUnavailableError)
    assert server.gets["/x"] == 2
    setup.now = 1.9
    assert "answers 503" in str(setup.error("papercut"))
    assert setup.start("papercut").done()
    assert server.gets["/x"] == 2
    setup.now = 2.1
    setup.error("papercut")
    assert server.gets["/x"] == 4
    setup.now = 2.1 + 3.9  # the second time it counts twice as long
    setup.error("papercut")
    assert server.gets["/x"] == 4
    setup.now = 2.1 + 4.1
    assert setup.load("papercut").source == "remote"
    assert setup.observer.counts == {"status": 5, "remote": 1}


def test_nothing_remains_of_a_refused_file(setup: Setup, server: FileServer) -> None:
    setup.file("local", b"bad 1")
    setup.remote("remote", server.add("/x", b"bad 2"))
    for name in ("local", "remote"):
        error = setup.error(name)
        assert isinstance(error, InvalidRequestError)
        assert str(error) == f'LORAS names "{name}": it adapts no module'
    assert setup.files() == []


def test_a_refusal_is_remembered(setup: Setup, server: FileServer) -> None:
    setup.file("local", b"bad 1")
    setup.file("copy", b"bad 1")
    setup.remote("remote", server.add("/x", b"bad 2"))
    for name in ("local", "copy", "remote"):
        setup.error(name)
        assert setup.start(name).done()
        setup.error(name)
    assert setup.canonicaliser.calls == 2
    assert server.gets == {"/x": 1}


def test_a_refused_lora_that_is_mended_is_loaded(setup: Setup, server: FileServer) -> None:
    setup.file("local", b"bad")
    url = server.add("/x", b"bad")
    setup.remote("remote", url)
    setup.error("local")
    setup.error("remote")
    setup.file("local", GOOD)
    server.add("/x", OTHER)
    assert setup.load("local").source == "disk"
    setup.now = 3.0
    assert setup.load("remote").source == "remote"


def test_an_edited_file_is_loaded_anew(setup: Setup) -> None:
    setup.file("papercut", GOOD)
    first = setup.load("papercut")
    setup.file("papercut", OTHER)
    second = setup.load("papercut")
    assert (second.source, second.path.read_bytes()) == ("disk", b"canonical " + OTHER)
    assert first.path.exists()  # requests may have it in use


def test_a_file_that_changes_while_it_is_read_is_not_taken(setup: Setup) -> None:
    setup.file("papercut", GOOD)
    setup.canonicaliser.before = lambda source: source.write_bytes(b"bad now!")
    assert "changed while it was read" in str(setup.error("papercut"))
    assert setup.files() == []
    setup.canonicaliser.before = lambda _source: None
    setup.file("papercut", GOOD)
    assert setup.load("papercut").source == "disk"


def test_hashes_of_the_catalogue_are_checked(setup: Setup, server: FileServer) -> None:
    setup.file("local", GOOD)
    wrong = "ab" * 32
    setup.index["local"] = {"sha256": wrong}
    setup.remote("remote", server.add("/x", GOOD), sha256=wrong)
    for name in ("local", "remote"):
        assert isinstance(setup.error(name), LoraUnavailableError)
        assert f"the catalogue says {wrong}" in str(setup.error(name))
    assert setup.files() == []
    assert setup.canonicaliser.calls == 0
    setup.index["local"] = {"sha256": hashlib.sha256(GOOD).hexdigest()}
    setup.remote("remote", server.url("/x"), sha256=hashlib.sha256(GOOD).hexdigest())
    assert setup.load("local").source == "disk"
    assert setup.load("remote").source == "host"


def test_too_large_files_are_refused_by_number(setup: Setup, server: FileServer) -> None:
    setup.restart(max_file_bytes=100)
    setup.file("local", GOOD)
    setup.remote("remote", server.add("/x", GOOD))
    assert isinstance(setup.error("local"), InvalidRequestError)
    assert "allowed: at most" in str(setup.error("remote"))
    setup.restart(host_bytes=100)
    error = setup.error("local")
    assert isinstance(error, InvalidRequestError)
    assert "more than the whole host cache" in str(error)
    assert setup.files() == []


def test_a_full_host_cache_is_trouble_that_passes(setup: Setup) -> None:
    setup.restart(host_bytes=600)
    setup.file("a", GOOD)
    setup.file("b", OTHER)
    with setup.host.open(setup.load("a").path):
        error = setup.error("b")
        assert isinstance(error, LoraUnavailableError)
        assert "were in use" in str(error)
    assert setup.load("b").source == "disk"
    assert setup.load("a").source == "disk"  # evicted meanwhile


def test_missing_and_odd_files_are_answered(setup: Setup, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    setup.remote("missing", str(tmp_path / "missing.safetensors"))
    setup.remote("folder", str(tmp_path))
    setup.remote("pipe", str(tmp_path / "pipe"))
    for name in ("missing", "folder", "pipe"):
        assert isinstance(setup.error(name), LoraUnavailableError)
    (tmp_path / "missing.safetensors").write_bytes(GOOD)
    assert setup.load("missing").source == "disk"


def test_a_bug_of_the_canonicaliser_ends_one_load(setup: Setup) -> None:
    setup.file("bug", b"bug")
    setup.file("papercut", GOOD)
    assert isinstance(setup.error("bug"), UnexpectedError)
    assert setup.load("papercut").source == "disk"
    assert len(setup.files()) == 1


# The disk cache


def put(cache: DiskCache, identity: str, content: bytes) -> HeldFile:
    with cache.partial() as partial:
        partial.write_bytes(content)
        return cache.add(identity, partial, hashlib.sha256(content).hexdigest())


def test_fetched_files_survive_their_process(tmp_path: Path) -> None:
    with put(DiskCache(tmp_path, 1000), "url", GOOD) as held:
        assert held.path.read_bytes() == GOOD
    found = DiskCache(tmp_path, 1000).find("url")
    assert found is not None
    with found:
        assert (found.path.read_bytes(), found.sha256) == (GOOD, hashlib.sha256(GOOD).hexdigest())
    assert DiskCache(tmp_path, 1000).find("another url") is None


def test_a_corrupt_file_is_dropped_when_it_is_first_used(tmp_path: Path) -> None:
    put(DiskCache(tmp_path, 1000), "url", GOOD).close()
    [path] = (tmp_path / "content").glob("*.safetensors")
    path.write_bytes(GOOD[:-1] + b"?")
    cache = DiskCache(tmp_path, 1000)
    assert cache.find("url") is None
    assert cache.bytes_used() == 0
    put(cache, "url", GOOD).close()
    found = cache.find("url")
    assert found is not None
    found.close()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"identity": "other", "sha256": "x"}', '{"identity": "url"}'])
def test_a_corrupt_index_is_no_obstacle(tmp_path: Path, content: str) -> None:
    cache = DiskCache(tmp_path, 1000)
    put(cache, "url", GOOD).close()
    [index] = (tmp_path / "index").iterdir()
    index.write_text(content)
    assert cache.find("url") is None
    put(cache, "url", GOOD).close()
    found = cache.find("url")
    assert found is not None
    found.close()


def test_two_servers_share_a_directory(tmp_path: Path) -> None:
    one, other = DiskCache(tmp_path, 500), DiskCache(tmp_path, 500)
    with put(one, "a", GOOD):
        put(other, "a", GOOD).close()
        assert other.bytes_used() == len(GOOD)
        with put(other, "b", OTHER) as apart:  # the other server holds what would have to go
            assert apart.path.read_bytes() == OTHER
        assert not apart.path.exists()
        assert one.bytes_used() == len(GOOD)
    put(other, "b", OTHER).close()
    assert one.bytes_used() == len(OTHER)
    assert one.find("a") is None


def test_leftovers_of_killed_writers_go(tmp_path: Path) -> None:
    DiskCache(tmp_path, 1000)
    old, new = tmp_path / "partial" / "old", tmp_path / "partial" / "new"
    for path in (old, new):
        path.write_bytes(b"x")
    past = time.time() - disk_cache_module.ABANDONED_AFTER_S - 1
    os.utime(old, (past, past))
    DiskCache(tmp_path, 1000)
    assert not old.exists()
    assert new.exists()


@settings(max_examples=60, deadline=None)
@given(
    operations=st.lists(st.tuples(st.sampled_from(["add", "find", "hold", "release"]), st.integers(0, 5)), max_size=30),
    bound=st.integers(10, 120),
)
def test_the_disk_cache_stays_in_its_bound(operations: list[tuple[str, int]], bound: int) -> None:
    contents = [bytes([index]) * (5 + 9 * index) for index in range(6)]
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        evicted: list[int] = []
        cache = DiskCache(Path(directory), bound, evicted.append)
        held: dict[int, HeldFile] = {}
        for operation, index in operations:
            if operation == "release" and index in held:
                held.pop(index).close()
            elif operation == "add":
                with put(cache, str(index), contents[index]) as added:
                    assert added.path.read_bytes() == contents[index]
            elif operation in ("find", "hold"):
                found = cache.find(str(index))
                if found is not None:
                    assert found.path.read_bytes() == contents[index]
                    if operation == "hold" and index not in held:
                        held[index] = stack.enter_context(found)
                    else:
                        found.close()
            assert cache.bytes_used() <= bound
            for each, file in held.items():
                assert file.path.read_bytes() == contents[each]
        assert not list((Path(directory) / "partial").iterdir())


def test_the_least_recently_used_contents_go_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    for name in "ab":
        put(cache, name, name.encode() * 400).close()
    found = cache.find("a")
    assert found is not None
    found.close()
    put(cache, "c", b"c" * 400).close()
    assert cache.find("b") is None
    assert cache.bytes_used() == 800
