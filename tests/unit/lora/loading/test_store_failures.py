"""Loads that fail: what the client reads, what is remembered, and that nothing remains."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import checkpoints
from file_server import FileServer
from lora_stores import GOOD, OTHER, Setup
from swiftdiffusion.python_backends.common.errors import (
    InvalidRequestError,
    LoraUnavailableError,
    UnexpectedError,
    UnusableFileError,
)
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.shared_memory.host_cache import Lease


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sd15(tmp_path_factory.mktemp("sd15")))


def test_who_joins_a_load_that_fails_reads_their_own_name(setup: Setup, server: FileServer) -> None:
    setup.remote("a", server.add("/x", failures=[404], delay_s=0.2))
    setup.remote("b", server.url("/x"))
    futures = {name: setup.start(name) for name in "ab"}
    for name, future in futures.items():
        with pytest.raises(LoraUnavailableError, match=f'^LORAS names "{name}": its store does not have the file$'):
            future.result(10)
    assert server.gets == {"/x": 1}


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


def test_what_does_not_fit_here_stays_on_disk_for_others(setup: Setup, server: FileServer) -> None:
    setup.remote("remote", server.add("/x", b"foreign"))
    assert str(setup.error("remote")) == 'LORAS names "remote": it is of another base model'
    assert setup.start("remote").done()
    [kept] = setup.files()
    assert kept.read_bytes() == b"foreign"
    fits = Setup(setup.directory)
    fits.canonicaliser = lambda _source, target, _outside: target.write_bytes(b"canonical") and ()  # type: ignore
    fits.restart()
    assert fits.load("remote").source == "disk"
    fits.store.close()
    assert server.gets == {"/x": 1}


def test_what_does_not_fit_here_may_be_replaced_at_its_store(setup: Setup, server: FileServer) -> None:
    url = server.add("/x", b"foreign")
    setup.remote("remote", url)
    setup.remote("pinned", url, sha256=hashlib.sha256(b"foreign").hexdigest())
    setup.error("remote")
    setup.error("pinned")
    assert server.gets == {"/x": 1}
    server.add("/x", GOOD)
    setup.now = 3.0
    assert setup.load("remote").source == "remote"
    setup.error("pinned")
    assert server.gets == {"/x": 2}
    assert setup.canonicaliser.calls == 2


@pytest.mark.parametrize("refused", ["no safetensors", "NaN", "another base model"])
def test_only_files_that_no_server_can_use_are_dropped(
    setup: Setup, server: FileServer, checkpoint: Checkpoint, refused: str
) -> None:
    value = float("nan") if refused == "NaN" else 1.0
    content = save({"lora_unet_nowhere.lora_up.weight": torch.full((2, 2), value)})
    setup.canonicaliser = Canonicaliser(checkpoint)  # type: ignore[assignment]
    setup.restart()
    setup.remote("remote", server.add("/x", b"#" * 100 if refused == "no safetensors" else content))
    assert type(setup.error("remote")) in (InvalidRequestError, UnusableFileError)
    assert len(setup.files()) == (refused == "another base model")


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
    with Lease(setup.load("a").path):
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
