"""PEFT's `adapter_config.json` beside a LoRA, and the catalogue's alpha, here and in stores."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import save

import checkpoints
from file_server import FileServer
from lora_stores import GOOD, Setup
from swiftdiffusion.python_backends.common.errors import InvalidRequestError, LoraUnavailableError
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

QUERY = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
DUMP = save({f"{QUERY}.lora_A.weight": torch.ones(4, 32), f"{QUERY}.lora_B.weight": torch.ones(32, 4)})


def config(alpha: float) -> bytes:
    return json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": alpha}).encode()


@pytest.fixture(scope="module")
def canonicaliser(tmp_path_factory: pytest.TempPathFactory) -> Canonicaliser:
    return Canonicaliser(Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl"))))


@pytest.fixture
def real(setup: Setup, canonicaliser: Canonicaliser) -> Setup:
    """A store with the real canonicaliser."""
    setup.canonicaliser = canonicaliser  # type: ignore[assignment]
    setup.restart(max_file_bytes=2 * 2**20, disk_bytes=4 * 2**20)
    return setup


def again(setup: Setup) -> None:
    setup.restart(max_file_bytes=2 * 2**20, disk_bytes=4 * 2**20)


def scale(setup: Setup, name: str) -> float:
    return CanonicalLora.open(setup.load(name).path).groups[0].scales[0]


def test_a_local_dump_follows_its_config_and_every_change_of_it(real: Setup) -> None:
    real.file("dump", DUMP)
    assert scale(real, "dump") == 1.0
    for alpha in (16, 8):
        (real.loras / "adapter_config.json").write_bytes(config(alpha))
        assert scale(real, "dump") == alpha / 4
    assert real.load("dump").source == "host"
    (real.loras / "adapter_config.json").unlink()
    assert scale(real, "dump") == 1.0


def test_a_config_among_other_files_is_not_theirs(real: Setup) -> None:
    """Else one file's settings would act on all."""
    (real.loras / "adapter_config.json").write_bytes(config(16))
    real.file("dump", DUMP)
    assert scale(real, "dump") == 4.0
    real.file("neighbour", DUMP)
    assert (scale(real, "dump"), scale(real, "neighbour")) == (1.0, 1.0)
    (note,) = CanonicalLora.open(real.load("dump").path).notes
    assert note.endswith("beside it lies an adapter_config.json that is not known to be its, as others lie there too")
    real.file("adapter_model", DUMP)
    assert (scale(real, "adapter_model"), scale(real, "dump")) == (4.0, 1.0)
    (real.loras / "adapter_config.json").unlink()
    (note,) = CanonicalLora.open(real.load("dump").path).notes
    assert note.endswith("says another")


def test_the_catalogues_alpha_and_every_change_of_it(real: Setup) -> None:
    file = str(real.file("dump", DUMP))
    for alpha in (2, 12.5):
        real.remote("dump", file, alpha=alpha)
        assert scale(real, "dump") == alpha / 4


def test_one_content_under_two_alphas_is_two_loras(real: Setup) -> None:
    file = str(real.file("plain", DUMP))
    real.remote("strong", file, alpha=8)
    assert (scale(real, "plain"), scale(real, "strong"), scale(real, "plain")) == (1.0, 2.0, 1.0)


@pytest.mark.parametrize("alpha", [0, -1, 1e7, "8", True])
def test_an_alpha_that_makes_no_sense_leaves_the_catalogue_as_it_was(
    real: Setup, caplog: pytest.LogCaptureFixture, alpha: object
) -> None:
    file = str(real.file("dump", DUMP))
    assert scale(real, "dump") == 1.0
    real.remote("dump", file, alpha=alpha)
    assert scale(real, "dump") == 1.0
    assert "loras.dump.alpha" in caplog.text


def test_an_entry_may_be_a_directory_as_peft_saves_it(real: Setup) -> None:
    directory = real.directory / "peft"
    directory.mkdir()
    (directory / "adapter_model.safetensors").write_bytes(DUMP)
    (directory / "adapter_config.json").write_bytes(config(2))
    real.remote("dump", str(directory))
    assert scale(real, "dump") == 0.5


def test_what_was_assumed_is_logged_with_the_loras_name(real: Setup, caplog: pytest.LogCaptureFixture) -> None:
    real.file("dump", DUMP)
    with caplog.at_level(logging.WARNING):
        real.load("dump")
    assert "the LoRA dump: alpha = rank was assumed for 1 module" in caplog.text


@pytest.mark.parametrize("content", [b"<html>", b"[]", b" " * (2**20 + 1)])
def test_a_config_that_is_none_is_refused(real: Setup, content: bytes) -> None:
    real.file("dump", DUMP)
    (real.loras / "adapter_config.json").write_bytes(content)
    error = real.error("dump")
    assert isinstance(error, InvalidRequestError)
    assert "adapter_config.json" in str(error)


def test_a_remote_dump_brings_its_config_once(real: Setup, server: FileServer) -> None:
    server.add("/dir/adapter_config.json", config(16))
    real.remote("dump", server.add("/dir/adapter_model.safetensors", DUMP))
    assert scale(real, "dump") == 4.0
    again(real)
    assert scale(real, "dump") == 4.0
    assert server.gets == {"/dir/adapter_model.safetensors": 1, "/dir/adapter_config.json": 1}


ALPHA = {f"{QUERY}.alpha": torch.tensor(8.0)}


@pytest.mark.parametrize("name", ["lora_A.weight", "lora_A.default.weight", "lora_down.weight"])
def test_with_alphas_of_its_own_a_file_needs_no_config(real: Setup, server: FileServer, name: str) -> None:
    other = name.replace("A", "B").replace("down", "up")
    dump = save({f"{QUERY}.{name}": torch.ones(4, 32), f"{QUERY}.{other}": torch.ones(32, 4)} | ALPHA)
    server.add("/dir/adapter_config.json", config(16), failures=[403] * 9)
    real.remote("far", server.add("/dir/adapter_model.safetensors", dump))
    (real.loras / "adapter_config.json").write_bytes(b" " * (2**20 + 1))
    real.file("near", dump)
    assert (scale(real, "far"), scale(real, "near")) == (2.0, 2.0)
    assert server.gets == {"/dir/adapter_model.safetensors": 1}


def test_a_config_beside_a_remote_file_of_another_name_is_not_asked_for(real: Setup, server: FileServer) -> None:
    server.add("/dir/adapter_config.json", config(16))
    real.remote("dump", server.add("/dir/dump.safetensors", DUMP))
    assert scale(real, "dump") == 1.0
    assert server.gets == {"/dir/dump.safetensors": 1}


@pytest.mark.parametrize(
    ("location", "beside"),
    [
        ("https://h/a/adapter_model.safetensors", "https://h/a/adapter_config.json"),
        ("https://h/a/adapter_model.safetensors?download=true", "https://h/a/adapter_config.json?download=true"),
        ("https://h/a/", "https://h/a/adapter_config.json"),
        ("s3://bucket/adapter_model.safetensors", "s3://bucket/adapter_config.json"),
        ("zip://a/adapter_model.safetensors::https://h/b.zip", "zip://a/adapter_config.json::https://h/b.zip"),
        ("https://h/a/x.safetensors", None),
        ("https://h/a/my_adapter_model.safetensors", None),
        ("https://h/api/download/12", None),
        ("https://h/api/download?file=a/adapter_model.safetensors", None),
    ],
)
def test_where_a_config_would_be(setup: Setup, location: str, beside: str | None) -> None:
    setup.remote("dump", location)
    assert setup.catalogue.entry("dump").adapter_config == beside


def test_a_remote_directory_as_peft_saves_it(real: Setup, server: FileServer) -> None:
    server.add("/dir/adapter_config.json", config(16))
    real.remote("dump", server.add("/dir/adapter_model.safetensors", DUMP).removesuffix("adapter_model.safetensors"))
    assert scale(real, "dump") == 4.0


def test_a_config_that_a_store_gets_later_is_found_when_the_file_is_loaded_anew(
    real: Setup, server: FileServer
) -> None:
    real.remote("dump", server.add("/dir/adapter_model.safetensors", DUMP))
    assert scale(real, "dump") == 1.0
    assert scale(real, "dump") == 1.0
    assert server.gets["/dir/adapter_config.json"] == 1
    server.add("/dir/adapter_config.json", config(16))
    again(real)
    assert scale(real, "dump") == 4.0
    assert server.gets["/dir/adapter_model.safetensors"] == 1


@pytest.mark.parametrize("status", [403, 410, 500])
def test_a_store_that_does_not_give_the_config_fails_the_load(real: Setup, server: FileServer, status: int) -> None:
    """Else the LoRA would act at another strength from time to time."""
    server.add("/dir/adapter_config.json", config(16), failures=[status] * 3)
    real.remote("dump", server.add("/dir/adapter_model.safetensors", DUMP))
    error = real.error("dump")
    assert isinstance(error, LoraUnavailableError)
    assert f"the adapter_config.json beside its file could not be fetched: its store answers {status}" in str(error)
    asked = server.gets["/dir/adapter_config.json"]
    assert str(real.error("dump")) == str(error)
    assert server.gets["/dir/adapter_config.json"] == asked
    server.add("/dir/adapter_config.json", config(16))
    real.now = 3.0
    assert scale(real, "dump") == 4.0


@pytest.mark.parametrize("size", [2**20 + 1, 3 * 2**20])
def test_a_remote_config_that_is_too_large_fails_the_load_until_it_is_another(
    real: Setup, server: FileServer, size: int
) -> None:
    server.add("/dir/adapter_config.json", b" " * size)
    real.remote("dump", server.add("/dir/adapter_model.safetensors", DUMP))
    assert "adapter_config.json" in str(real.error("dump"))
    server.add("/dir/adapter_config.json", config(16))
    real.now = 3.0
    assert scale(real, "dump") == 4.0


def test_files_of_other_formats_are_not_asked_about(setup: Setup, server: FileServer) -> None:
    setup.remote("other", server.add("/dir/adapter_model.safetensors", GOOD))
    setup.load("other")
    assert server.gets == {"/dir/adapter_model.safetensors": 1}


def test_any_store_of_fsspec(real: Setup) -> None:
    store: Any = MemoryFileSystem()
    for name, content in (("adapter_model.safetensors", DUMP), ("adapter_config.json", config(16))):
        store.pipe(f"/configured/{name}", content)
    real.remote("dump", "memory://configured/adapter_model.safetensors")
    assert scale(real, "dump") == 4.0


def test_a_config_of_another_adapter_is_refused_by_its_rank(real: Setup, tmp_path: Path) -> None:
    real.file("dump", DUMP)
    (real.loras / "adapter_config.json").write_bytes(json.dumps({"r": 16, "lora_alpha": 16}).encode())
    assert "its rank is 4; adapter_config.json says 16" in str(real.error("dump"))
