"""Where a model on a GPU keeps the kernels that are compiled for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import model_process  # noqa: F401  before what imports the server's module
import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.backend.compute import KERNELS_VARIABLE, ComputeSettings
from swiftdiffusion.python_backends.backend.settings import ModelSettings
from swiftdiffusion.python_backends.common.runtime_directory import VARIABLE


@pytest.fixture(autouse=True)
def _process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """One that may be told of a GPU, with a runtime directory and a cache of its own, and as it was afterwards."""
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "runtime"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(KERNELS_VARIABLE, "")  # puts back what it was
    monkeypatch.delenv(KERNELS_VARIABLE)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.sd15(tmp_path_factory.mktemp("compute") / "sd15")


def prepare(checkpoint: Path, kind: str, **others: str) -> ComputeSettings:
    parameters = {"checkpoint": str(checkpoint), "dtype": "float32", "threads": "1", **others}
    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    args = {
        "model_name": "vae_decoder",
        "model_instance_name": "vae_decoder_0",
        "model_instance_device_id": "0",
        "model_instance_kind": kind,
        "model_repository": str(checkpoint),
        "model_config": json.dumps(config),
    }
    return ComputeSettings.from_settings(ModelSettings.from_triton(args))


def test_8_bit_floats_are_what_a_shard_is_told(checkpoint: Path) -> None:
    assert [prepare(checkpoint, "GPU", **told).runtime.fp8 for told in ({}, {"fp8": "1"})] == [False, True]


def test_kernels_are_kept_beyond_the_server(checkpoint: Path, tmp_path: Path) -> None:
    knobs = pytest.importorskip("triton").knobs
    prepare(checkpoint, "GPU")
    assert knobs.cache.dir == str(tmp_path / "cache" / "swiftdiffusion" / "kernels")
    assert Path(knobs.cache.dir).is_dir()


def test_kernels_are_shared_by_the_server_s_models_where_nothing_can_be_kept(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a directory should be")
    prepare(checkpoint, "GPU")
    assert os.environ[KERNELS_VARIABLE] == str(tmp_path / "runtime" / "kernels-disk")


def test_the_user_s_own_place_is_left(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, "/elsewhere")
    prepare(checkpoint, "GPU")
    assert os.environ[KERNELS_VARIABLE] == "/elsewhere"


def test_a_cpu_compiles_none(checkpoint: Path, tmp_path: Path) -> None:
    prepare(checkpoint, "CPU")
    assert KERNELS_VARIABLE not in os.environ
    assert not (tmp_path / "cache").exists()
