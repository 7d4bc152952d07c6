"""Fetched files on disk: they survive their process, servers share them, and the bound holds."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_stores import GOOD, OTHER
from swiftdiffusion.python_backends.lora.loading import content_index
from swiftdiffusion.python_backends.lora.loading import disk_cache as disk_cache_module
from swiftdiffusion.python_backends.lora.loading.disk_cache import DiskCache, HeldFile


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


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"identity": "other", "sha256": "x"}',
        '{"identity": "url"}',
        '{"sha256": "%s"}' % ("x" * 999),
        "[" * 99_999,
    ],
)
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


def test_the_index_forgets_contents_that_are_gone(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 3 * len(GOOD))
    for index in range(100):
        put(cache, f"url {index}", b"%03d" % index + GOOD[3:]).close()
    assert len(list((tmp_path / "index").iterdir())) <= 4
    held = [cache.find(f"url {index}") for index in (97, 98, 99)]
    assert all(held)
    for each in held:
        assert each is not None
        each.close()


def test_an_old_index_is_pruned_when_the_cache_is_opened(tmp_path: Path) -> None:
    put(DiskCache(tmp_path, 1000), "url", GOOD).close()
    [kept] = (tmp_path / "index").iterdir()
    for index in range(50):
        old = {"identity": f"old {index}", "sha256": f"{index:064x}"}
        (tmp_path / "index" / f"{index:064x}.json").write_text(json.dumps(old))
    (tmp_path / "index" / "half-written.partial").write_text("{")
    DiskCache(tmp_path, 1000)
    assert list((tmp_path / "index").iterdir()) == [kept]


def test_pruning_goes_through_a_large_index_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_index, "PRUNED_AT_OPENING", 10)
    cache = DiskCache(tmp_path, 10_000)
    for index in range(200):
        (tmp_path / "index" / f"{index:064x}.json").write_text(json.dumps({"sha256": f"{index:064x}"}))
    for index in range(5):
        before = len(list((tmp_path / "index").iterdir()))
        put(cache, f"url {index}", b"%03d" % index).close()
        assert before - content_index.PRUNED_AT_A_TIME < len(list((tmp_path / "index").iterdir())) < before
    for index in range(5, 9):
        put(cache, f"url {index}", b"%03d" % index).close()
    assert len(list((tmp_path / "index").iterdir())) == 9


def test_an_entry_that_is_written_anew_is_not_pruned(tmp_path: Path) -> None:
    """While one server finds contents gone, another brings them back."""
    cache, stop = DiskCache(tmp_path, 1000), threading.Event()

    def prune() -> None:
        while not stop.is_set():
            DiskCache(tmp_path, 1000)

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        for _ in range(300):
            cache.drop(hashlib.sha256(GOOD).hexdigest())
            put(cache, "url", GOOD).close()
            found = cache.find("url")
            assert found is not None
            found.close()
    finally:
        stop.set()
        thread.join()


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


@settings(max_examples=60)
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
