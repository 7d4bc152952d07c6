"""The host cache: its bound, what it evicts, and what other processes do to it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processes import other_process
from swiftdiffusion.python_backends.common.processes import namespace
from swiftdiffusion.python_backends.shared_memory.host_cache import EvictedError, HostCache, HostCacheFullError, Lease


def publish(cache: HostCache, key: str, size: int, expected: int | None = None) -> Path:
    with cache.reserve(size if expected is None else expected) as reservation:
        reservation.path.write_bytes(b"x" * size)
        return reservation.publish(key)


def keys(cache: HostCache) -> set[str]:
    return {path.stem for path in cache.directory.glob("*.safetensors")}


LEASE = """
from swiftdiffusion.python_backends.shared_memory.host_cache import Lease
leases = [Lease(Path(p)) for p in sys.argv[1:]]
"""


def test_a_published_file_is_found_and_leased(tmp_path: Path) -> None:
    cache = HostCache(tmp_path, 100)
    path = publish(cache, "a", 10)
    assert cache.find("a") == path
    assert cache.find("b") is None
    with Lease(path) as lease:
        assert lease.path.read_bytes() == b"x" * 10
    assert cache.bytes_used() == 10
    path.unlink()
    with pytest.raises(EvictedError, match="no longer in the cache"):
        Lease(path)


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    evicted: list[int] = []
    cache = HostCache(tmp_path, 30, on_eviction=evicted.append)
    for key in "abc":
        publish(cache, key, 10)
    cache.find("a")
    publish(cache, "d", 10)
    assert keys(cache) == {"a", "c", "d"}
    with Lease(tmp_path / "c.safetensors"):
        pass
    publish(cache, "e", 20)
    assert keys(cache) == {"c", "e"}
    assert evicted == [10, 10, 10]


def test_leased_files_stay(tmp_path: Path) -> None:
    cache = HostCache(tmp_path, 30, wait_s=0.1)
    with Lease(publish(cache, "a", 20)):
        with pytest.raises(HostCacheFullError, match=r"it takes 0.0 MiB; .* were in use for 0.1 s") as error:
            publish(cache, "b", 20)
        assert not error.value.for_ever
        assert keys(cache) == {"a"}
        publish(cache, "c", 10)
    publish(cache, "b", 20)
    assert keys(cache) == {"b", "c"}
    assert cache.bytes_used() == 30


def test_room_in_use_is_waited_for(tmp_path: Path) -> None:
    cache = HostCache(tmp_path, 30, wait_s=10)
    lease = Lease(publish(cache, "a", 20))
    threading.Timer(0.2, lease.close).start()
    publish(cache, "b", 20)
    assert keys(cache) == {"b"}


def test_a_machine_with_little_shared_memory_bounds_the_cache_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = HostCache(tmp_path, 100, wait_s=0)
    publish(cache, "a", 20)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    publish(cache, "b", 10)
    assert keys(cache) == {"a", "b"}
    with pytest.raises(HostCacheFullError, match=r"the machine has 0\.0 MiB free for it"):
        publish(cache, "c", 50)


def test_what_is_larger_than_the_cache_is_refused_at_once(tmp_path: Path) -> None:
    cache = HostCache(tmp_path, 2**20, wait_s=60)
    publish(cache, "a", 10)
    with pytest.raises(HostCacheFullError, match=r"takes 2.0 MiB, more than the whole host cache of 1.0 MiB") as error:
        publish(cache, "b", 2**21)
    assert error.value.for_ever
    with pytest.raises(HostCacheFullError, match="more than the whole host cache"):
        publish(cache, "b", 2**21, expected=1)
    assert keys(cache) == {"a"}
    assert cache.bytes_used() == 10


def test_nothing_remains_of_what_was_not_published(tmp_path: Path) -> None:
    cache = HostCache(tmp_path, 100)
    with pytest.raises(RuntimeError), cache.reserve(50) as reservation:
        reservation.path.write_bytes(b"x" * 60)
        assert cache.bytes_used() == 60
        raise RuntimeError
    assert cache.bytes_used() == 0
    assert not list(tmp_path.glob("*.partial"))


def test_a_reservation_counts_before_anything_is_written(tmp_path: Path) -> None:
    cache = HostCache(tmp_path, 100, wait_s=0)
    with cache.reserve(60):
        assert cache.bytes_used() == 60
        with pytest.raises(HostCacheFullError):
            publish(cache, "a", 50)
    publish(cache, "a", 50)


def test_a_key_is_published_once(tmp_path: Path) -> None:
    cache = HostCache(tmp_path, 100)
    path = publish(cache, "a", 10)
    with Lease(path):
        inode = path.stat().st_ino
        publish(cache, "a", 10)
        assert path.stat().st_ino == inode
    assert cache.bytes_used() == 10


def test_a_lease_of_another_process_counts_until_it_is_killed(tmp_path: Path) -> None:
    cache = HostCache(tmp_path, 10, wait_s=0.05)
    path = publish(cache, "a", 10)
    with other_process(LEASE, str(path)) as holder:
        with pytest.raises(HostCacheFullError):
            publish(cache, "b", 10)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        publish(cache, "b", 10)
    assert keys(cache) == {"b"}


def test_a_lease_meets_the_evictor(tmp_path: Path) -> None:
    """Whoever leases while files come and go has the file, or is told that it went."""
    cache = HostCache(tmp_path, 20, wait_s=10)
    stop, wrong = threading.Event(), []

    def lease() -> None:
        while not stop.is_set():
            for key in "abcd":
                try:
                    with Lease(tmp_path / f"{key}.safetensors") as lease:
                        if not lease.path.exists():
                            wrong.append(key)
                except EvictedError:
                    pass
                time.sleep(0.001)

    threads = [threading.Thread(target=lease) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for index in range(150):
            publish(cache, "abcd"[index % 4], 10)
            assert cache.bytes_used() <= 20
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_half_written_files_of_a_killed_writer_go(tmp_path: Path) -> None:
    code = (
        "from swiftdiffusion.python_backends.shared_memory.host_cache import HostCache\n"
        "room = HostCache(Path(sys.argv[1]), 100).reserve(10); room.__enter__().path.write_bytes(b'x' * 10)"
    )
    with other_process(code, str(tmp_path)):
        assert HostCache(tmp_path, 100).bytes_used() == 10
    assert HostCache(tmp_path, 100).bytes_used() == 0


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["publish", "find", "lease", "release", "drop"]), st.sampled_from("abcdef")), max_size=40
)


@settings(max_examples=80)
@given(operations=OPERATIONS, bound=st.integers(20, 80))
def test_whatever_happens_the_bound_holds_and_leased_files_stay(operations: list[tuple[str, str]], bound: int) -> None:
    """Against a model: an ordered dict of the keys by last use."""
    sizes = {key: 5 + 4 * index for index, key in enumerate("abcdef")}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as leases:
        cache = HostCache(Path(directory), bound, wait_s=0)
        used: dict[str, None] = {}  # keys from least to most recently used
        leased: dict[str, Lease] = {}
        for operation, key in operations:
            path = Path(directory) / f"{key}.safetensors"
            if operation == "publish":
                if key in used:  # a publisher makes room before it sees that somebody was faster
                    continue
                used = _after_publishing(cache, key, sizes, used, set(leased))
            elif operation == "find":
                assert (cache.find(key) is not None) == (key in used)
                _move_to_end(used, key)
            elif operation == "lease" and key in used and key not in leased:
                leased[key] = leases.enter_context(Lease(path))
                _move_to_end(used, key)
            elif operation == "release" and key in leased:
                leased.pop(key).close()
            elif operation == "drop" and key not in leased:
                path.unlink(missing_ok=True)
                used.pop(key, None)
            assert keys(cache) == set(used)
            assert cache.bytes_used() == sum(sizes[each] for each in used) <= bound


def _after_publishing(
    cache: HostCache, key: str, sizes: dict[str, int], used: dict[str, None], leased: set[str]
) -> dict[str, None]:
    """What publishing a new key is to leave in the cache, having published it if there is to be room."""
    kept = dict(used)
    for old in used if sizes[key] <= cache.max_bytes else ():
        if sum(sizes[each] for each in kept) + sizes[key] > cache.max_bytes and old not in leased:
            del kept[old]
    if sum(sizes[each] for each in kept) + sizes[key] <= cache.max_bytes:
        publish(cache, key, sizes[key])
        return {**kept, key: None}
    with pytest.raises(HostCacheFullError):
        publish(cache, key, sizes[key])
    return used  # nothing goes where it would not make the room


def _move_to_end(used: dict[str, None], key: str) -> None:
    if key in used:
        del used[key]
        used[key] = None


def test_what_another_container_writes_is_left_alone_for_a_while(tmp_path: Path) -> None:
    dead = 2**22 + 1  # no process has such an id
    here, there = (tmp_path / f"{dead}-1-1-{where}.partial" for where in (namespace(), "another"))
    for path in (here, there):
        path.write_bytes(b"x")
    HostCache(tmp_path, 100)
    assert (here.exists(), there.exists()) == (False, True)
    os.utime(there, times=(0, 0))
    HostCache(tmp_path, 100)
    assert not there.exists()
