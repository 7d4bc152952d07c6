"""Which LoRAs a server has, and what happens while its operator edits them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path

import pytest

from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.lora.loading.catalogue import Catalogue, CatalogueError
from swiftdiffusion.python_backends.request.loras import LoraDefaults

SHA256 = "ab" * 32


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "loras"
    path.mkdir()
    return path


def add(directory: Path, name: str, content: bytes = b"x") -> Path:
    path = directory / f"{name}.safetensors"
    path.write_bytes(content)
    return path


def index(directory: Path, loras: object) -> None:
    (directory / "catalogue.json").write_text(json.dumps({"loras": loras}), "utf-8")


def bound(catalogue: Catalogue, name: str) -> int | None:
    return catalogue.bound(name, steps=20)


def settle(directory: Path) -> None:
    """Gives everything an mtime that cannot hide a change."""
    past = time.time() - 60
    for path in (*directory.iterdir(), directory):
        os.utime(path, (past, past))


def test_files_are_loras(directory: Path) -> None:
    path = add(directory, "papercut")
    (directory / "notes.txt").write_text("x")
    catalogue = Catalogue(directory)
    assert catalogue.names() == ["papercut"]
    entry = catalogue.entry("papercut")
    assert (entry.location, entry.sha256, entry.bound, entry.is_remote) == (str(path), None, None, False)


def test_the_index_annotates_files_and_adds_others(directory: Path, tmp_path: Path) -> None:
    add(directory, "papercut")
    index(
        directory,
        {
            "papercut": {"sha256": SHA256.upper(), "bound": 4, "description": "cut"},
            "near": {"location": "sub/near.safetensors"},
            "absolute": {"location": str(tmp_path / "absolute.safetensors")},
            "url": {"location": "file:///some%20where/x.safetensors"},
            "remote": {"location": "https://host/x.safetensors?token=1"},
            "bucket": {"location": "s3://bucket/x.safetensors"},
        },
    )
    catalogue = Catalogue(directory)
    papercut = catalogue.entry("papercut")
    assert (papercut.sha256, papercut.bound) == (SHA256, 4)
    assert catalogue.entry("near").location == str(directory / "sub/near.safetensors")
    assert catalogue.entry("absolute").location == str(tmp_path / "absolute.safetensors")
    assert catalogue.entry("url").location == "/some where/x.safetensors"
    assert catalogue.entry("remote").location == "https://host/x.safetensors?token=1"
    assert [name for name in catalogue.names() if catalogue.entry(name).is_remote] == ["bucket", "remote"]


def test_an_unknown_name_gets_the_nearest(directory: Path) -> None:
    add(directory, "Papercut")
    add(directory, "watercolour")
    catalogue = Catalogue(directory)
    with pytest.raises(InvalidRequestError) as error:
        catalogue.entry("papercutt")
    assert str(error.value) == 'LORAS names "papercutt"; allowed: names of the catalogue, the nearest: Papercut'
    with pytest.raises(InvalidRequestError, match="among them: Papercut, watercolour"):
        catalogue.entry("zzz")


@pytest.mark.parametrize("name", ["", "../x", "x" * 10_000, 'a"b', "\ud800", "\0"])
def test_any_unknown_name_is_answered_with_a_sentence(directory: Path, name: str) -> None:
    add(directory, "papercut")
    with pytest.raises(InvalidRequestError) as error:
        Catalogue(directory).entry(name)
    assert len(str(error.value)) < 400


def test_names_and_locations_in_any_script(directory: Path, tmp_path: Path) -> None:
    """A file system may keep a name decomposed (NFD); a request may bring it composed, or the other way round."""
    composed, decomposed = "pap\u00ebr cut (v1.0) 'q' $x", "pape\u0308r cut (v1.0) 'q' $x"
    path = add(directory, decomposed)
    profile = directory / f"{composed}.profile.json"
    profile.write_text('{"bound": 2}')
    index(directory, {composed: {"alpha": 4.0}, "剪纸": {"location": "file:///m%C3%B6bel/剪.safetensors"}})
    catalogue = Catalogue(directory)
    assert catalogue.names() == [composed, "剪纸"]
    for name in (composed, decomposed):
        assert (catalogue.entry(name).location, catalogue.entry(name).alpha) == (str(path), 4.0)
        assert bound(catalogue, name) == 2
    assert catalogue.entry("剪纸").location == "/möbel/剪.safetensors"


def test_the_index_says_what_requests_default_to(directory: Path) -> None:
    add(directory, "plain")
    index(directory, {"fast": {"location": "x", "steps": 4, "guidance_scale": 0, "scheduler": "lcm", "scale": 0.7}})
    catalogue = Catalogue(directory)
    assert catalogue.defaults("fast") == LoraDefaults(4, 0.0, "lcm", 0.7)
    assert catalogue.defaults("plain") == LoraDefaults()


def test_a_server_may_have_none(directory: Path) -> None:
    for catalogue in (Catalogue(None), Catalogue(directory)):
        assert catalogue.names() == []
        with pytest.raises(InvalidRequestError, match='LORAS names "x"; allowed: this server has no LoRAs'):
            catalogue.entry("x")


def test_a_catalogue_that_is_no_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="is not a directory"):
        Catalogue(tmp_path / "nowhere")


def test_unusable_files_are_left_out_with_one_warning_each(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = add(tmp_path, "secret")
    add(directory, ".hidden")
    add(directory, "a\tb")
    add(directory, "good")
    (directory / "out.safetensors").symlink_to(secret)
    (directory / "in.safetensors").symlink_to("good.safetensors")
    (directory / "folder.safetensors").mkdir()
    os.mkfifo(directory / "pipe.safetensors")
    (directory / "dangling.safetensors").symlink_to("nothing")
    with caplog.at_level(logging.WARNING):
        catalogue = Catalogue(directory)
        for _ in range(3):
            assert catalogue.names() == ["good", "in"]
    assert len(caplog.records) == 6


def test_changes_show_without_a_restart(directory: Path) -> None:
    add(directory, "first")
    catalogue = Catalogue(directory)
    add(directory, "second")
    assert catalogue.names() == ["first", "second"]
    index(directory, {"first": {"bound": 3}})
    assert catalogue.entry("first").bound == 3
    index(directory, {"first": {"bound": 4}})
    assert catalogue.entry("first").bound == 4
    (directory / "second.safetensors").unlink()
    assert catalogue.names() == ["first"]
    (directory / "catalogue.json").unlink()
    assert catalogue.entry("first").bound is None


def test_changes_show_after_a_quiet_time_too(directory: Path) -> None:
    add(directory, "first")
    index(directory, {})
    settle(directory)
    catalogue = Catalogue(directory)
    catalogue.names()
    add(directory, "second")
    assert catalogue.names() == ["first", "second"]
    settle(directory)
    catalogue.names()
    index(directory, {"first": {"bound": 3}})
    assert catalogue.entry("first").bound == 3


def test_a_broken_edit_leaves_the_last_good_state(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(directory, "papercut")
    index(directory, {"papercut": {"bound": 3}})
    settle(directory)
    catalogue = Catalogue(directory)
    (directory / "catalogue.json").write_text('{"loras": {"papercut"')
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert bound(catalogue, "papercut") == 3
    assert len(caplog.records) == 1
    assert "catalogue.json" in caplog.text
    index(directory, {"papercut": {"bound": 5}})
    assert bound(catalogue, "papercut") == 5


def test_a_profile_of_another_file_is_left_out(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalogue = Catalogue(directory)
    file = add(directory, "papercut", b"as it was measured")
    measured = hashlib.sha256(b"as it was measured").hexdigest()
    (directory / "papercut.profile.json").write_text(json.dumps({"bound": 7, "steps": 20, "sha256": measured}))
    assert bound(catalogue, "papercut") == 7
    file.write_bytes(b"retrained")
    assert bound(catalogue, "papercut") is None
    assert "measured on another file" in caplog.text
    remote = {"location": "https://example.com/far.safetensors"}
    (directory / "far.profile.json").write_text(json.dumps({"bound": 3, "sha256": measured}))
    for sha256, expected in ((None, 3), (measured, 3), ("0" * 64, None)):
        index(directory, {"far": remote | ({} if sha256 is None else {"sha256": sha256})})
        assert bound(catalogue, "far") == expected


def test_an_annotation_without_a_file_is_left_out(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    index(directory, {"gone": {"bound": 1}})
    catalogue = Catalogue(directory)
    assert catalogue.names() == []
    assert "no file gone.safetensors" in caplog.text
    add(directory, "gone")
    assert catalogue.entry("gone").bound == 1


def test_the_profile_gives_the_bound_unless_the_index_does(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(directory, "papercut")
    catalogue = Catalogue(directory)
    profile = directory / "papercut.profile.json"
    profile.write_text('{"bound": 7, "cosines": [1, 0.9]}')
    assert bound(catalogue, "papercut") == 7
    profile.write_text('{"bound": 8}')
    assert bound(catalogue, "papercut") == 8
    index(directory, {"papercut": {"bound": 0}})
    assert bound(catalogue, "papercut") == 0
    index(directory, {"papercut": {}})
    profile.write_text('{"bound": "many"}')
    with caplog.at_level(logging.WARNING):
        assert [bound(catalogue, "papercut") for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1


def test_the_identity_follows_the_file_and_the_index(directory: Path) -> None:
    path = add(directory, "papercut", b"one")
    catalogue = Catalogue(directory)
    seen = [catalogue.entry("papercut").identity]
    assert catalogue.entry("papercut").identity == seen[0]
    path.write_bytes(b"three")
    seen.append(catalogue.entry("papercut").identity)
    os.utime(path, ns=(1, 1))
    seen.append(catalogue.entry("papercut").identity)
    index(directory, {"papercut": {"sha256": SHA256}})
    seen.append(catalogue.entry("papercut").identity)
    index(directory, {"papercut": {"sha256": SHA256, "location": "https://host/x"}})
    seen.append(catalogue.entry("papercut").identity)
    index(directory, {"papercut": {"location": "https://host/x"}})
    seen.append(catalogue.entry("papercut").identity)
    assert len(set(seen)) == len(seen)
