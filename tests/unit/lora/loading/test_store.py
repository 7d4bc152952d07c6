"""The store over its tiers: sources, and one load however many ask."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future

from file_server import FileServer, wait_for
from lora_stores import GOOD, OTHER, Setup
from swiftdiffusion.python_backends.lora.loading.outcomes import LoadedLora


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
    gate = threading.Event()
    setup.remote("papercut", server.add("/x", GOOD, gate=gate))
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
    gate.set()
    assert len({future.result(10).path for future in futures}) == 1
    assert server.gets == {"/x": 1}
    assert setup.canonicaliser.calls == 1
    assert setup.observer.counts == {"remote": 20}


def test_asking_never_waits(setup: Setup, server: FileServer) -> None:
    gate = threading.Event()
    for index in range(20):
        setup.remote(f"slow{index}", server.add(f"/{index}", GOOD, gate=gate))
    futures = [setup.start(f"slow{index}") for index in range(20)]
    assert not any(future.done() for future in futures)
    gate.set()
    assert len({future.result(20).path for future in futures}) == 1


def test_an_edited_file_is_loaded_anew(setup: Setup) -> None:
    setup.file("papercut", GOOD)
    first = setup.load("papercut")
    setup.file("papercut", OTHER)
    second = setup.load("papercut")
    assert (second.source, second.path.read_bytes()) == ("disk", b"canonical " + OTHER)
    assert first.path.exists()  # requests may have it in use


def test_a_file_replaced_while_its_load_waits_and_put_back(setup: Setup) -> None:
    go_on = threading.Event()
    setup.canonicaliser.before = lambda source: wait_for(go_on.is_set) if source.stem.startswith("slow") else None
    for index in range(2):  # as many as are made ready at a time
        setup.file(f"slow{index}", b"%d" % index)
        setup.start(f"slow{index}")
    old = setup.file("papercut", GOOD)
    waiting = setup.start("papercut")
    kept = old.rename(setup.directory / "kept")
    setup.file("papercut", OTHER)
    go_on.set()
    assert waiting.result(10).path.read_bytes() == b"canonical " + OTHER
    kept.rename(old)
    assert setup.load("papercut").path.read_bytes() == b"canonical " + GOOD


def test_what_needs_no_fetch_never_waits_for_one(setup: Setup, server: FileServer) -> None:
    setup.remote("before", server.add("/x", OTHER))
    setup.load("before")
    setup.restart()
    gate = threading.Event()
    for index in range(20):
        setup.remote(f"slow{index}", server.add(f"/{index}", GOOD, gate=gate))
    setup.file("local", GOOD)
    slow = [setup.start(f"slow{index}") for index in range(20)]
    assert setup.load("local").source == "disk"
    assert setup.load("before").source == "disk"
    assert not any(future.done() for future in slow)
    gate.set()
    assert {future.result(20).path for future in slow} == {setup.load("local").path}


def test_a_fetch_does_not_wait_for_files_that_are_made_ready(setup: Setup, server: FileServer) -> None:
    go_on = threading.Event()
    setup.canonicaliser.before = lambda _source: wait_for(go_on.is_set)
    for index in range(6):
        setup.file(f"local{index}", b"%d" % index)
    setup.remote("remote", server.add("/x", GOOD))
    loads = [setup.start(f"local{index}") for index in range(6)] + [setup.start("remote")]
    wait_for(lambda: bool(list((setup.disk.directory / "content").glob("*.safetensors"))))
    assert not any(load.done() for load in loads)
    go_on.set()
    assert [load.result(10).source for load in loads] == ["disk"] * 6 + ["remote"]
